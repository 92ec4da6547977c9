"""The scheduler: one layer's FFN on two units at the same time.

The named rows of a layer lie in segments. Those on the unit of the layer's attention are computed here; the others go
through the lane to the other unit meanwhile; one add joins them (PowerInfer, section 5.3).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from hybrid.ops.bank import RowBank
from hybrid.predictors.rows import RowPredictor
from hybrid.runtime.activity import Activity
from hybrid.runtime.lane import Lane
from hybrid.runtime.streaming import RowStream
from hybrid.runtime.tally import Tally
from hybrid.runtime.timing import Mark, SplitTimes, StepTimes
from hybrid.runtime.unit import Unit
from placement.plan import Mode
from profiler.tap import GateTap, ResidualTap, Tap


@dataclass(frozen=True)
class SplitLayer:
    """One layer's rows: those beside its attention, those elsewhere, and what names them."""

    near: Unit
    far: Unit | None
    near_banks: Sequence[RowBank]
    far_banks: Sequence[RowBank]
    predictor: RowPredictor | None
    down_bias: torch.Tensor | None  # fp32 [hidden], beside attention

    @property
    def units(self) -> list[tuple[Unit, Sequence[RowBank]]]:
        """The units that may compute rows, with their own."""
        beside = (self.near, self.near_banks)
        return [beside] if self.far is None else [beside, (self.far, self.far_banks)]

    def with_threshold(self, threshold: float) -> SplitLayer:
        """The same layer, its predictor with another threshold."""
        assert self.predictor is not None, "predicted mode has predictors"
        predictor = replace(self.predictor.predictor, threshold=threshold)
        return replace(self, predictor=replace(self.predictor, predictor=predictor))


class Scheduler:
    """Computes FFNs in a mode; see docs/structure.md for what a mode means.

    Without `overlap` both units of a layer compute one after the other: the same bits, and what overlapping saves is
    seen.
    """

    def __init__(
        self,
        layers: Sequence[SplitLayer],
        mode: Mode,
        has_exact_zeros: bool,
        lane: Lane | None,
        activation_cutoff: float = 0.0,  # the model's own, whatever the mode
        overlap: bool = True,
        prefetch: bool = False,
        tally: Tally | None = None,
    ) -> None:
        self.layers = layers
        self.overlap = overlap
        self.prefetch = prefetch  # named rows are asked of the drive; see `hybrid.runtime.requests`
        self.mode = mode
        self.tally = tally
        self.skip_inactive = mode == "threshold" or (mode != "dense" and has_exact_zeros)
        self.activation_cutoff = activation_cutoff
        self.activity = Activity()  # replaced by the engine for each kind of work
        self.times = StepTimes()  # replaced by the engine for each step
        self.tap: Tap | None = None
        self.stream: RowStream | None = None  # by which rows of host memory may pass through the GPU
        self._lane = lane
        self.ahead = torch.empty(0, dtype=torch.bool)  # what the layer before named for the one that comes; of one pass

    def feed_forward(self, index: int, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """fp32 `[tokens, hidden]`: the FFN of layer `index` for the normalised states `x`, of states `residual`."""
        layer = self.layers[index]
        named = self._named(index, x, residual) if self.mode == "predicted" else None
        if isinstance(self.tap, ResidualTap):
            self.tap.residual(index, residual)
        y = self._computed(index, x, named) if self.tap is None else self._watched(self.tap, index, layer, x, named)
        return y if layer.down_bias is None else y + layer.down_bias

    def set_thresholds(self, thresholds: Sequence[float]) -> None:
        """Let each layer's predictor name what lies above another logit."""
        self.layers = [layer.with_threshold(t) for layer, t in zip(self.layers, thresholds, strict=True)]

    def _named(self, index: int, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """bool `[tokens, rows]`: what the layer's predictor names; also asks for the next layer where that one can."""
        layer = self.layers[index]
        assert layer.predictor is not None, "predicted mode has predictors"
        reads = layer.predictor.predictor.reads
        if reads == "previous_ffn_input":
            named = self.ahead.to(x.device)
        else:
            with self.times.span(layer.near, index, "predictors"):
                named = layer.predictor.named(x if reads == "ffn_input" else residual)
        following = self.ahead_of(index)
        if following is not None:
            with self.times.span(self.layers[index + 1].near, index, "predictors"):
                self.ahead = following.named(x.to(following.neuron_ids.device))
        return named

    def ahead_of(self, index: int) -> RowPredictor | None:
        """The next layer's predictor, where it reads what the FFN of layer `index` reads."""
        following = self.layers[index + 1].predictor if index + 1 < len(self.layers) else None
        return following if following and following.predictor.reads == "previous_ffn_input" else None

    def _computed(self, index: int, x: torch.Tensor, named: torch.Tensor | None) -> torch.Tensor:
        layer = self.layers[index]
        if self.tally is not None:
            self.tally.tokens[index] += len(x)
        if self.stream is not None and self.stream.wanted(index, len(x)):
            return self._streamed(self.stream, index, x, named)
        if layer.far_banks:
            return self.on_both(index, x, named)
        with self.times.span(layer.near, index, "feed-forward"):
            return self._rows(index, layer.near, layer.near_banks, x, named)

    def _watched(
        self, tap: Tap, index: int, layer: SplitLayer, x: torch.Tensor, named: torch.Tensor | None
    ) -> torch.Tensor:
        """What the mode computes; a tap is shown the activations of all rows, and those that the mode adds up."""
        banks = (*layer.near_banks, *layer.far_banks)
        activations = x.new_empty(x.shape[0], sum(len(bank) for bank in banks))
        gates = torch.empty_like(activations) if isinstance(tap, GateTap) or self.mode == "threshold" else None
        whole = self._activations(layer.near, layer.near_banks, x, activations, gates)
        if layer.far is not None:
            whole = whole + self._activations(layer.far, layer.far_banks, x, activations, gates)
        y = whole if self.mode == "dense" else self._computed(index, x, named)
        if self.mode == "threshold":
            assert gates is not None
            named = gates.abs() > banks[0].cutoff
        elif named is None and self.skip_inactive:
            named = activations != 0
        if isinstance(tap, GateTap):
            assert gates is not None
            tap.gate(index, gates)
        tap.ffn(index, x, activations, named)
        return y

    def _activations(
        self,
        unit: Unit,
        banks: Sequence[RowBank],
        x: torch.Tensor,
        activations: torch.Tensor,
        gates: torch.Tensor | None,
    ) -> torch.Tensor:
        """fp32 `[tokens, hidden]`, what all rows of a unit add, nothing cut off but what the model itself cuts off.

        Their activations go into `[tokens, rows of the layer]`, what the activation function gave into `gates`. All are
        where `x` is.
        """
        there, y = x.to(unit.device), torch.zeros_like(x)
        cutoff = self.activation_cutoff if self.mode == "threshold" else None  # elsewhere banks have the model's own
        for bank in banks:
            rows = slice(bank.first_row, bank.first_row + len(bank))
            columns = [shown[:, rows] for shown in (activations, gates) if shown is not None]
            here = columns if unit.device == x.device else [there.new_empty(part.shape) for part in columns]
            shown = (here[0], here[1] if gates is not None else None, cutoff)
            y += unit.sparse_ffn(bank, there, None, False, *shown)[0].to(x.device)
            for part, filled in zip(columns, here, strict=True):
                if filled is not part:
                    part.copy_(filled)
        return y

    def on_both(self, index: int, x: torch.Tensor, named: torch.Tensor | None) -> torch.Tensor:
        """fp32 `[tokens, hidden]`: the rows of a split layer, each on its unit, at the same time."""
        layer, times, lane = self.layers[index], self.times, self._lane
        assert lane is not None and layer.far is not None, "split layers need a lane"
        near, far, far_banks = layer.near, layer.far, layer.far_banks
        far_times: list[Mark] = []

        def work() -> torch.Tensor:
            far_x, far_named = arrive()
            assert far_x is not None
            far_times.append(times.mark(far.device))
            result = self._rows(index, far, far_banks, far_x, far_named)
            far_times.append(times.mark(far.device))
            return result if near.device.type == "cuda" else result.to(near.device)  # there before it is joined

        def wait() -> tuple[torch.Tensor, tuple[float, float]]:
            began = time.perf_counter()
            return lane.join(), (began, time.perf_counter())

        handing = times.mark(near.device)
        arrive = carry([x, named], far.device)
        lane.submit(work)
        handed = times.mark(near.device)
        waited = None if self.overlap else wait()
        began = times.mark(near.device)
        y = self._rows(index, near, layer.near_banks, x, named)  # if this fails, what the other side does is given up
        ended = times.mark(near.device)
        far_y, waiting = waited or wait()
        there, back = far_times
        units = near.name, far.name
        times.split(SplitTimes(index, units, handing, handed, (began, ended), (there, back), waiting))
        return y + far_y.to(y.device)

    def _streamed(self, stream: RowStream, index: int, x: torch.Tensor, named: torch.Tensor | None) -> torch.Tensor:
        """fp32 `[tokens, hidden]`: all of a layer's rows on the GPU, those of host memory as they are brought."""
        layer, gpu = self.layers[index], stream.unit
        host = layer.far if layer.near is gpu else layer.near
        assert host is not None, "rows are streamed from one unit to another"
        resident, brought = layer.near_banks, layer.far_banks
        if layer.near is not gpu:
            resident, brought = brought, resident
        there, asked = x.to(gpu.device), None if named is None else named.to(gpu.device)
        with (
            self.times.span(gpu, index, "feed-forward"),
            stream.bring(brought, asked, lambda: self.times.span(host, index, "copying")) as passage,
        ):
            self.activity.streamed_bytes += passage.bytes
            y = self._rows(index, gpu, resident, there, asked)
            for bank, columns in passage:
                if not isinstance(columns, slice):
                    columns = columns.to(gpu.device)
                y = y + self._bank(index, gpu, bank, columns, there, None if asked is None else asked[:, columns])
        return y.to(x.device)

    def _rows(
        self, index: int, unit: Unit, banks: Sequence[RowBank], x: torch.Tensor, named: torch.Tensor | None
    ) -> torch.Tensor:
        y: torch.Tensor | None = None
        for bank in banks:
            columns = slice(bank.first_row, bank.first_row + len(bank))
            part = self._bank(index, unit, bank, columns, x, None if named is None else named[:, columns])
            y = part if y is None else y + part
        return torch.zeros_like(x) if y is None else y

    def _bank(
        self,
        index: int,
        unit: Unit,
        bank: RowBank,
        columns: slice | torch.Tensor,
        x: torch.Tensor,
        named: torch.Tensor | None,
    ) -> torch.Tensor:
        fired = None if self.tally is None else torch.zeros(len(bank), dtype=torch.int64, device=unit.device)
        y, counts = unit.sparse_ffn(bank, x, named, self.skip_inactive, fired=fired)
        if self.tally is not None and fired is not None:
            self.tally.add(unit.name, index, columns, fired)
        done = self.activity.rows(unit.name)
        done.gated += counts.gated
        done.finished += counts.finished
        return y


def carry(tensors: Sequence[torch.Tensor | None], device: torch.device) -> Callable[[], Sequence[torch.Tensor | None]]:
    """Send tensors to a device without waiting; the returned function, called by the other side, waits and gives them.

    From a CUDA device they go to pinned memory in stream order, behind an event that only the receiver waits for.
    """
    source = next(t for t in tensors if t is not None).device
    if source == device:
        return lambda: tensors
    if source.type == "cuda":
        sent = [None if t is None else torch.empty_like(t, device=device, pin_memory=True).copy_(t, non_blocking=True)
                for t in tensors]  # fmt: skip
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()

        def arrive() -> Sequence[torch.Tensor | None]:
            event.synchronize()
            return sent

        return arrive
    return lambda: [None if t is None else t.to(device) for t in tensors]
