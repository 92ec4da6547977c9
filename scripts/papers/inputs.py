"""The data file as objects: machines with the fitted constants in them, models, workloads, and what is varied."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from placement.plan import Budgets
from placement.shapes import ModelShape, figures, papers, shape_of
from placement.simulate import Workload
from profiler.hardware import Hardware
from profiler.speeds import ComputeUnit, FlashSpeed


@dataclass(frozen=True)
class Constants:
    """What is fitted, on one row, for all machines and models.

    memory_share: of host memory's nominal bandwidth, what is reached. hand_over: seconds that it costs to have a
    layer's rows computed on both units.
    """

    memory_share: float
    hand_over: float


@dataclass(frozen=True)
class Inputs:
    """The data file, or a variant of it."""

    body: dict[str, Any]

    @classmethod
    def published(cls) -> Inputs:
        """The data file as it is."""
        return cls(papers())

    def shape(self, model: str) -> ModelShape:
        """A model."""
        return shape_of(model, self.body["models"][model])

    def hardware(self, machine: str, constants: Constants) -> Hardware:
        """A machine. Copies to the GPU pass through host memory, so its share is in the link's bandwidth too."""
        groups, known = self.body["machines"][machine], self._machine(machine)
        share = constants.memory_share
        link = known["link_bandwidth"] * share
        return Hardware(
            name=machine,
            description="from a paper",
            gpu=ComputeUnit(known["gpu_bandwidth"], known["gpu_overhead"], flops=known.get("gpu_flops")),
            cpu=ComputeUnit(known["cpu_bandwidth"] * share, known["cpu_overhead"], flops=known.get("cpu_flops")),
            link_bandwidth=link,
            back_bandwidth=link,
            hand_over=constants.hand_over,
            sync=constants.hand_over,
            measured=False,
            flash=tuple(FlashSpeed(**figures({"": speed})) for speed in groups.get("flash", ())),
        )

    def workload(self, name: str, batch: int) -> Workload:
        """What a row asks for."""
        return Workload(**figures({"": self.body["workloads"][name]}), batch=batch)

    def budgets(self, machine: str, workload: Workload) -> Budgets:
        """GPU memory less what CUDA takes, and room for the keys and values of the whole request."""
        known = self._machine(machine)
        vram = round(known["gpu_memory"] - known["gpu_reserve"])
        return Budgets(vram, known["cpu_memory"], workload.prompt + workload.output, workload.batch)

    def fits_when_split(self, machine: str, model: str) -> bool:
        """Whether a model in fp16 fits host memory and GPU together, and not the GPU alone."""
        known, size = self._machine(machine), 2 * self.shape(model).weights
        return bool(known["gpu_memory"] < size <= known["gpu_memory"] + known["cpu_memory"])

    def changed(self, alternative: dict[str, Any]) -> Inputs:
        """The inputs with another figure for all models or machines, another factor on it, or another workload."""
        body = copy.deepcopy(self.body)
        for kind in ("models", "machines"):
            for groups in body[kind].values():
                for group in groups.values():
                    if isinstance(group, dict):
                        _change(group, alternative.get(kind, {}), alternative.get(f"scale_{kind}", {}))
        for workload, other in alternative.get("workloads", {}).items():
            body["workloads"][workload] = body["workloads"][other]
        return Inputs(body)

    def _machine(self, machine: str) -> dict[str, Any]:
        groups = self.body["machines"][machine]
        return figures({name: group for name, group in groups.items() if name != "flash"})


def _change(group: dict[str, Any], values: dict[str, float], factors: dict[str, float]) -> None:
    for name in group:
        if name in values:
            group[name] = values[name]
        if name in factors:
            group[name] *= factors[name]
