"""What a user is told when a device fails in the middle of a step."""

from __future__ import annotations

from hybrid.runtime.unit import Unit, is_exhaustion
from profiler.artifacts import UserError


class DeviceError(UserError):
    """A device failed; nothing that it holds can be relied on any more."""


def explained(error: RuntimeError, unit: Unit | None, doing: str) -> UserError:
    """What to raise for an error of a step, outside of its handler: what failed is let go here.

    unit: the one beside the host, if there is one. doing: what failed, in words.

    Raises:
        RuntimeError: the error, where it is none of a device's.
    """
    if unit is None:
        raise error
    if is_exhaustion(error):
        return unit.exhausted(error, doing)
    if "CUDA" not in str(error):  # as those of torch, of Triton and of the driver say
        raise error
    said = str(error).strip().splitlines()[0]
    return DeviceError(f"the GPU failed in {doing} ({said}); what it held is lost: open the model anew")
