"""Which recorded step serves a model: one native program, or pieces on a device and the host; or none."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from hybrid.model.decoder import ComputeUnit, Decoder
from hybrid.model.eager import Step
from hybrid.runtime.activity import Activity
from hybrid.runtime.cuda_streams import CudaStreams, Driver
from hybrid.runtime.recorded import RecordedStep
from hybrid.runtime.scheduler import Scheduler
from hybrid.runtime.streams import HostStreams, Streams
from hybrid.runtime.trace import Spans

log = logging.getLogger(__name__)


class Recorded(Protocol):
    """A decoder's step for up to `cpu.MAX_TOKENS` tokens; see `RecordedStep` and `DeviceStep`."""

    def run(self, step: Step, activity: Activity, spans: Spans | None = None) -> torch.Tensor:
        """fp32 `[tokens, hidden]` as `Decoder.forward`, in a buffer that the next run overwrites."""

    def logits(self, hidden: torch.Tensor, activity: Activity, spans: Spans | None = None) -> torch.Tensor:
        """fp32 `[tokens, vocab]` on the host as `Decoder.logits`, in a buffer that the next call overwrites."""

    def next_logits(
        self, step: Step, wanted: Sequence[int], activity: Activity, spans: Spans | None = None
    ) -> torch.Tensor:
        """fp32 `[wanted, vocab]` on the host: a step, and the logits of some of its tokens, by their places in it."""

    def seconds(self) -> dict[str, float]:
        """What native operators took so far, by kind."""

    def close(self) -> None:
        """Forget what was recorded, and the memory that it holds."""


def record(decoder: Decoder, scheduler: Scheduler, context: int) -> Recorded | None:
    """The recorded step of a model; None where one of its units is computed by torch alone.

    context: tokens of the longest sequence there can be.
    """
    units = list(units_of(decoder, scheduler))
    devices = [unit for unit in units if unit.pool is None]
    if not devices:
        return RecordedStep(decoder, scheduler, units)
    if not all(unit.kernels for unit in devices):
        return None
    from hybrid.runtime.device_step import DeviceStep  # needs Triton, which is not everywhere

    streams = streams_of(devices[0].device, scheduler.overlap)
    return None if streams is None else DeviceStep(decoder, scheduler, units, context, streams)


def units_of(decoder: Decoder, scheduler: Scheduler) -> Iterator[ComputeUnit]:
    """All units that compute a part of a model, some of them several times."""
    yield from (decoder.outer.embeddings_unit, decoder.outer.head_unit)
    yield from (layer.unit for layer in decoder.layers)
    for layer in scheduler.layers:
        if layer.near_banks or layer.predictor is not None:
            yield layer.near
        if layer.far_banks:
            assert layer.far is not None, "rows elsewhere have a unit"
            yield layer.far


def streams_of(device: torch.device, overlap: bool) -> Streams | None:
    """Streams of a device; None where its driver cannot be reached, as is said."""
    if device.type != "cuda":
        return HostStreams(overlap)
    try:
        return CudaStreams(device, Driver(), overlap)
    except (OSError, AttributeError) as error:
        log.warning("the GPU's operators are torch's, which is slower: its driver cannot be called (%s)", error)
        return None
