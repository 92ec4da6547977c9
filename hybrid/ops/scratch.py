"""Scratch memory of the device operators: buffers that are made when they are first asked for, and then kept."""

from __future__ import annotations

import math

import torch


class Scratch:
    """Named buffers on one device. What an operator leaves in one, the next may overwrite.

    A name has memory for the largest buffer that was asked for under it: another one of that name may be a part of it.
    A captured graph holds buffers by address, so once every operator ran, `freeze` sees to it that none is moved.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._memory: dict[str, torch.Tensor] = {}
        self._frozen = False

    @property
    def bytes(self) -> int:
        """Of all buffers."""
        return sum(map(len, self._memory.values()))

    def get(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """The contiguous buffer of that name, of a shape and type, with whatever is in it.

        Raises:
            RuntimeError: there is no memory for it yet, and the buffers are frozen.
        """
        size = math.prod(shape) * dtype.itemsize
        memory = self._memory.get(name)
        if memory is None or len(memory) < size:
            if self._frozen:
                raise RuntimeError(f"the scratch buffers are frozen and have no {name!r} of {dtype} {list(shape)}")
            memory = self._memory[name] = torch.empty(size, dtype=torch.uint8, device=self.device)
        return memory[:size].view(dtype).view(shape)

    def freeze(self) -> None:
        """From now on only what is there can be asked for, and stays where it is."""
        self._frozen = True
