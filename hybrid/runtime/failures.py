"""What a user is told when a device fails in the middle of a step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from profiler.artifacts import UserError


class DeviceError(UserError):
    """A device failed; nothing that it holds can be relied on any more."""


@contextlib.contextmanager
def explained(tokens: int) -> Iterator[None]:
    """Around a step of so many tokens.

    Raises:
        UserError: the device has no memory left; the next step may be computed.
        DeviceError: the device failed otherwise.
    """
    try:
        yield
    except RuntimeError as error:  # torch's errors of memory are some, and Triton's and the driver's own
        if isinstance(error, torch.OutOfMemoryError) or ("CUDA" in str(error) and "out of memory" in str(error)):
            raise UserError(
                f"the GPU has no memory left for a step of {tokens} tokens: something else takes what the plan counted "
                "on; close that, or plan anew with a smaller --vram or --context"
            ) from error
        if "CUDA" not in str(error):
            raise
        said = str(error).strip().splitlines()[0]
        raise DeviceError(f"the GPU failed ({said}); what it held is lost: open the model anew") from error
