"""A decoder on a device and the host recorded as pieces: device operators, copies, and the host's programs.

Each operator goes to its layer's unit. The host's operators in a row are one program, which is called when its turn on
the main stream comes. Where a layer's rows lie on both units, the host's go to the second stream: with the copies there
and back where attention is on the device, beside the device's rows on the main stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from hybrid.model.decoder import ComputeUnit, Decoder, LayerParts, NormWeights, OuterParts, Projection
from hybrid.ops import cpu
from hybrid.ops.bank import RowBank
from hybrid.predictors.rows import RowPredictor
from hybrid.runtime.device_recorder import DeviceRecorder
from hybrid.runtime.feed_forwards import FeedForwards
from hybrid.runtime.host_recorder import HostRecorder
from hybrid.runtime.pieces import Piece, Pieces
from hybrid.runtime.scheduler import Scheduler, SplitLayer
from hybrid.runtime.step_inputs import StepInputs
from hybrid.runtime.unit import Unit
from hybrid.spec import ModelSpec

Side = HostRecorder | DeviceRecorder


class StepRecorder(FeedForwards):
    """Turns what a decoder asks for into pieces; see `Operators`.

    device: of the units that have no pool. context: tokens of the longest sequence there can be.
    """

    def __init__(self, spec: ModelSpec, scheduler: Scheduler, device: torch.device, context: int) -> None:
        super().__init__(scheduler)
        self.spec = spec
        self._pieces = Pieces()
        self.inputs = StepInputs(context, device)
        self.host_step = cpu.HostStep(*self.inputs.addresses)
        self.programs: list[cpu.Program] = []  # of the host, all of them
        self.functions: list[cpu.HostFunction] = []  # that call them
        # Of each layer that both units compute at once, in turn: the host's part, and whether attention is there.
        self.splits: list[tuple[cpu.HostFunction, bool]] = []
        pinned = device.type == "cuda"
        self.device_counts = torch.zeros(2, dtype=torch.int64, pin_memory=pinned)  # what a step leaves
        self.host = HostRecorder(
            spec,
            scheduler.skip_inactive,
            allocate=lambda width, dtype: torch.zeros(cpu.MAX_TOKENS, width, dtype=dtype, pin_memory=pinned),
            prefetch=scheduler.prefetch,
        )
        self.device = DeviceRecorder(spec, scheduler.skip_inactive, device, self.inputs, context, self._pieces)
        self._at: Side = self.device  # where the state is

    def step(self, decoder: Decoder) -> tuple[list[Piece], torch.Tensor]:
        """The pieces of a whole step but for the head, and where they leave what the head reads."""
        counts, found = self.device.counts, self.device_counts
        self._pieces.on_device("copy", self.inputs.send)
        self._pieces.on_device("sums", lambda tokens: counts.zero_())
        hidden = decoder.forward(self)
        self._pause()
        self._pieces.on_device("copy", lambda tokens: found.copy_(counts, non_blocking=True))
        return self._pieces.take(), hidden

    def head(self, outer: OuterParts, hidden: torch.Tensor) -> tuple[list[Piece], torch.Tensor]:
        """The pieces of the head, of what lies where the head is, and where in host memory they leave the logits."""
        self._resume(outer.head_unit)
        (logits,) = self._at.project(outer.head_unit, hidden, [Projection(outer.head, None)])
        self._pause()
        if self._at is self.device:
            logits = self._carried(logits, self.host, "logits")
        return self._pieces.take(), logits

    def picked(self, outer: OuterParts) -> torch.Tensor:
        """Where the head may be given states, beside those that a step leaves."""
        return self._side(outer.head_unit).buffer("picked", self.spec.hidden_size)

    def embed(self, outer: OuterParts) -> torch.Tensor:
        """See `Operators`."""
        self._at = self._side(outer.embeddings_unit)
        self._resume(outer.embeddings_unit)
        return self._at.embed(outer)

    def follow(self, x: torch.Tensor, unit: ComputeUnit, layer: int | None) -> torch.Tensor:
        """See `Operators`."""
        side = self._side(unit)
        if side is not self._at:
            self._pause()
            x = self._carried(x, side, "state")
            self._at = side
            self._resume(unit)
        self._pieces.layer = layer
        return self._at.follow(x, unit, layer)

    def norm(self, x: torch.Tensor, norm: NormWeights) -> torch.Tensor:
        """See `Operators`."""
        return self._at.norm(x, norm)

    def project(self, unit: ComputeUnit, x: torch.Tensor, projections: Sequence[Projection]) -> list[torch.Tensor]:
        """See `Operators`."""
        return self._at.project(unit, x, projections)

    def attend(self, layer: LayerParts, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """See `Operators`."""
        return self._at.attend(layer, q, k, v)

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See `Operators`."""
        return self._at.add(x, y)

    def _add_bias(self, y: torch.Tensor, bias: torch.Tensor) -> None:
        self._at.add_vector(y, bias)

    def _predicted(self, index: int, rows: RowPredictor, x: torch.Tensor, buffer: str) -> torch.Tensor:
        return self._at.predict(self.scheduler.layers[index].near, rows, x, buffer)

    def _predicted_ahead(
        self, index: int, rows: RowPredictor, x: torch.Tensor, buffer: str
    ) -> Callable[[], torch.Tensor]:
        """Where the next layer is on the other unit, its predictor is told there what it reads, and waits its turn."""
        side = self._side(self.scheduler.layers[index].near)
        if side is self._at:
            named = self._predicted(index, rows, x, buffer)
            return lambda: named
        self._pause()
        there = self._carried(x, side, "ahead")
        self._resume(self.scheduler.layers[index - 1].near)
        return lambda: self._predicted(index, rows, there, buffer)

    def _here(self, index: int, x: torch.Tensor, named: torch.Tensor | None) -> torch.Tensor:
        layer = self.scheduler.layers[index]
        return self._at.rows(layer.near, layer.near_banks, x, named, "feed-forward")

    def _on_both(self, index: int, x: torch.Tensor, named: torch.Tensor | None) -> torch.Tensor:
        layer = self.scheduler.layers[index]
        self._pause()  # what is computed so far may be copied now
        if not layer.near_banks:
            y = self._elsewhere(layer, x, named)
            self._resume(layer.near)
            return y
        self._pieces.fork()
        if on_host := self._at is self.host:
            with self._pieces.aside():
                y = self._program(layer.near, layer.near_banks, x, named)
            there = self._elsewhere(layer, x, named)
        else:
            with self._pieces.aside():
                there = self._elsewhere(layer, x, named)
        self.splits.append((self.functions[-1], on_host))
        if not on_host:
            y = self._here(index, x, named)
        self._pieces.join()
        self._resume(layer.near)
        return self._at.add(y, there)

    def _elsewhere(self, layer: SplitLayer, x: torch.Tensor, named: torch.Tensor | None) -> torch.Tensor:
        """What the rows of the other unit add, from where attention is and back."""
        assert layer.far is not None, "rows elsewhere have a unit"
        here, there = self._at, self._side(layer.far)
        far_x = self._carried(x, there, "of the other unit")
        far_named = None if named is None else self._carried(named, there, "named by the other unit")
        if there is self.device:
            y = self.device.rows(layer.far, layer.far_banks, far_x, far_named, "feed-forward")
        else:
            y = self._program(layer.far, layer.far_banks, far_x, far_named)
        return self._carried(y, here, "from the other unit")

    def _program(
        self, unit: Unit, banks: Sequence[RowBank], x: torch.Tensor, named: torch.Tensor | None
    ) -> torch.Tensor:
        """Rows of the host as a program of their own."""
        self.host.begin(new_step=False)
        self.host.follow(x, unit, self._pieces.layer)
        y = self.host.rows(unit, banks, x, named, "feed-forward")
        self._call("feed-forward")
        return y

    def _side(self, unit: ComputeUnit) -> Side:
        return self.device if unit.pool is None else self.host

    def _resume(self, unit: ComputeUnit) -> None:
        """Where the state is on the host, what follows goes to a program of its own."""
        if self._at is self.host:
            self.host.begin(new_step=False)
            self.host.follow(self.host.state, unit, self._pieces.layer)

    def _pause(self) -> None:
        """Where the state is on the host, what was recorded since `_resume` is to be done before what follows."""
        if self._at is self.host:
            self._call("program")

    def _call(self, kind: str) -> None:
        function = cpu.HostFunction(self.host_step, self.host.program)
        self.programs.append(self.host.program)
        self.functions.append(function)
        self._pieces.on_host(kind, function, self.host.program)

    def _carried(self, x: torch.Tensor, to: Side, name: str) -> torch.Tensor:
        """`x` in the other side's memory."""
        y = to.buffer(name, x.shape[1], x.dtype)
        self._pieces.on_device("copy", lambda tokens: y[:tokens].copy_(x[:tokens], non_blocking=True))
        return y
