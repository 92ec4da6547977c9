"""What the engine knows of itself, as metrics: read when somebody asks, on any thread, beside the engine's own."""

from __future__ import annotations

import resource
from collections.abc import Iterable, Iterator

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hybrid.runtime.engine import Engine
from hybrid.runtime.summary import bytes_per_token
from hybrid.serving.service import EngineService

PREDICTORS = "predictors"  # an operator of native programs


class EngineCollector(Collector):
    """Reads an engine that a service steps.

    A sum may be a step ahead of another one: each is read by itself while the engine goes on, and only grows.
    """

    def __init__(self, service: EngineService) -> None:
        self.service, self.engine = service, service.engine
        self._process = psutil.Process()

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client."""
        yield from self._load()
        yield from _work(self.engine)
        yield from _operators(self.engine)
        yield from self._memory()

    def describe(self) -> Iterable[Metric]:
        """See prometheus_client: the names are known once the engine is asked."""
        return []

    def _load(self) -> Iterator[Metric]:
        load = self.engine.load()
        waiting = max(0, self.service.outstanding - load.running)  # those that the engine's thread did not take yet too
        for name, about, value in (
            ("running", "Completions that are in steps.", load.running),
            ("waiting", "Completions that wait for a slot, or for pages.", waiting),
            ("slots", "Completions that are in steps at once at most.", load.slots),
            ("queue_limit", "Completions that may wait.", self.service.queue),
            ("kv_pages_used", "Pages of keys and values in use.", load.pages_used),
            ("kv_pages_cached", "Pages kept for prompts that begin alike.", load.pages_cached),
            ("kv_pages", "Pages of keys and values in all.", load.pages_total),
            ("kv_page_bytes", "Bytes of a page, in all layers.", load.page_bytes),
        ):
            yield GaugeMetricFamily(f"hybrid_{name}", about, value)
        for name, about, value in (
            ("preemptions", "Completions that gave up their pages for a while.", load.preemptions),
            ("prompt_tokens", "Tokens of prompts that were taken.", load.prompt_tokens),
            ("cached_prompt_tokens", "Of these, found in pages that were computed before.", load.cached_prompt_tokens),
        ):
            yield CounterMetricFamily(f"hybrid_{name}", about, value)

    def _memory(self) -> Iterator[Metric]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        faults = CounterMetricFamily(
            "hybrid_page_faults", "Of this process; major ones waited for a drive.", labels=["kind"]
        )
        faults.add_metric(["minor"], usage.ru_minflt)
        faults.add_metric(["major"], usage.ru_majflt)
        yield faults
        memory = GaugeMetricFamily(
            "hybrid_memory_bytes", "Resident bytes of this process, and bytes of model files it maps.", labels=["kind"]
        )
        memory.add_metric(["resident"], self._process.memory_info().rss)
        memory.add_metric(["mapped"], sum(size for _, size, _ in self.engine.directory.mappings()))
        yield memory
        unit = self.engine.machine.units.get("gpu")
        if unit is None or self.engine.options.plan is None:
            return
        placed = GaugeMetricFamily("hybrid_gpu_bytes", "Bytes placed in the GPU's memory.", labels=["purpose"])
        for purpose, size in dict(unit.used).items():
            placed.add_metric([purpose], size)
        yield placed
        use = unit.use(self.engine.options.plan.bytes["gpu"])
        if use is not None and use.process is not None:
            yield GaugeMetricFamily("hybrid_gpu_process_bytes", "That the driver says this process has.", use.process)


def _work(engine: Engine) -> Iterator[Metric]:
    """Tokens, seconds, rows and bytes, of prompts and of tokens that were generated."""
    sides = {"prompt": engine.ledger.prefill, "decode": engine.ledger.decode}
    units = list(engine.machine.units)
    tokens = CounterMetricFamily("hybrid_engine_tokens", "Tokens computed.", labels=["kind"])
    seconds = CounterMetricFamily("hybrid_engine_seconds", "Seconds that they took.", labels=["kind"])
    native = CounterMetricFamily("hybrid_engine_native_seconds", "Of these, inside native steps.", labels=["kind"])
    touched = CounterMetricFamily("hybrid_engine_bytes", "Bytes of weights, keys and values read.", labels=["kind"])
    rows = CounterMetricFamily("hybrid_engine_rows", "Neurons computed.", labels=["kind", "unit", "part"])
    per_token = GaugeMetricFamily("hybrid_rows_per_token", "Neurons finished for a generated token.", labels=["unit"])
    for kind, activity in sides.items():
        tokens.add_metric([kind], activity.tokens)
        seconds.add_metric([kind], activity.seconds)
        native.add_metric([kind], activity.native_seconds)
        touched.add_metric([kind], bytes_per_token(engine, activity) * activity.tokens)
        for unit in units:
            rows.add_metric([kind, unit, "gated"], activity.rows(unit).gated)
            rows.add_metric([kind, unit, "finished"], activity.rows(unit).finished)
    decode = sides["decode"]
    for unit in units:
        per_token.add_metric([unit], decode.rows(unit).finished / max(1, decode.tokens))
    yield from (tokens, seconds, native, touched, rows, per_token)
    yield GaugeMetricFamily(
        "hybrid_bytes_per_token", "Bytes read for a generated token.", bytes_per_token(engine, decode)
    )


def _operators(engine: Engine) -> Iterator[Metric]:
    """Seconds of native operators by kind; of models that torch computes there are none."""
    recorded = engine.machine.recorded
    taken = {} if recorded is None else recorded.seconds()
    seconds = CounterMetricFamily("hybrid_operator_seconds", "Seconds of native operators.", labels=["operator"])
    for operator, value in sorted(taken.items()):
        seconds.add_metric([operator], value)
    yield seconds
    whole = sum(taken.values())
    share = taken.get(PREDICTORS, 0.0) / whole if whole else 0.0
    yield GaugeMetricFamily("hybrid_predictor_share", "Of native operators' seconds, those of predictors.", share)
