"""Scratch memory of the device operators: buffers that are made when they are first asked for, and then kept."""

from __future__ import annotations

import torch


class Scratch:
    """Named buffers on one device. What an operator leaves in one, the next may overwrite.

    A captured graph holds buffers by address, so none is ever given back or moved; once every operator ran, `freeze`
    sees to it that none is added either.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.buffers: dict[tuple[str, tuple[int, ...], torch.dtype], torch.Tensor] = {}
        self._frozen = False

    @property
    def bytes(self) -> int:
        """Of all buffers."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers.values())

    def get(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """The contiguous buffer of that name, shape and type, with whatever is in it: the same one every time.

        Raises:
            RuntimeError: it would be a new one, and the buffers are frozen.
        """
        key = (name, shape, dtype)
        if key not in self.buffers:
            if self._frozen:
                raise RuntimeError(f"the scratch buffers are frozen and have no {name!r} of {dtype} {list(shape)}")
            self.buffers[key] = torch.empty(shape, dtype=dtype, device=self.device)
        return self.buffers[key]

    def freeze(self) -> None:
        """From now on only what is there can be asked for."""
        self._frozen = True
