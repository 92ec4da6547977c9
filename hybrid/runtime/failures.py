"""What a user is told when a device fails in the middle of a step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from hybrid.runtime.unit import Unit
from profiler.artifacts import UserError

# Of the driver beneath a library, or beneath a kernel that is loaded.
NO_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


class DeviceError(UserError):
    """A device failed; nothing that it holds can be relied on any more."""


@contextlib.contextmanager
def explained(tokens: int, unit: Unit | None) -> Iterator[None]:
    """Around a step of so many tokens, of which `unit` computes a part, if there is a device.

    Raises:
        UserError: the device has no memory left. What the step held is let go; the next one may be computed.
        DeviceError: the device failed otherwise.
    """
    try:
        yield
    except RuntimeError as error:  # torch's errors of memory are some, and Triton's and the driver's own
        if unit is not None and is_exhaustion(error):
            raise unit.exhausted(error, f"a step of {tokens} tokens") from None
        if unit is None or "CUDA" not in str(error):
            raise
        said = str(error).strip().splitlines()[0]
        raise DeviceError(f"the GPU failed ({said}); what it held is lost: open the model anew") from error


def is_exhaustion(error: BaseException) -> bool:
    """Whether a device had no memory left: torch's allocator says so, or the driver."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in NO_MEMORY)
