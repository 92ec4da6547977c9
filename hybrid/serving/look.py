"""One look at an engine from outside its thread, and what happened between two of them, as plain JSON."""

from __future__ import annotations

import base64
import copy
import time
from dataclasses import dataclass

import numpy as np
import psutil
from numpy.typing import NDArray

from hybrid.model.pages import PAGE_TOKENS
from hybrid.runtime.activity import Activity
from hybrid.runtime.engine import Engine
from hybrid.runtime.load import EngineLoad
from hybrid.runtime.summary import bytes_per_token
from hybrid.runtime.tally import RESIDENCES, Firing
from hybrid.serving.service import EngineService
from hybrid.serving.shape import Json


@dataclass(frozen=True)
class Look:
    """What an engine has done up to a moment; `resident` are bytes of this process in memory (RSS)."""

    seconds: float
    decode: Activity
    prefill: Activity
    load: EngineLoad
    outstanding: int
    firing: Firing | None
    resident: int

    @classmethod
    def at(cls, service: EngineService) -> Look:
        """Now; from any thread."""
        engine = service.engine
        return cls(
            seconds=time.monotonic(),
            decode=copy.deepcopy(engine.ledger.decode),
            prefill=copy.deepcopy(engine.ledger.prefill),
            load=engine.load(),
            outstanding=service.outstanding,
            firing=engine.firing() if engine.options.tally else None,
            resident=int(psutil.Process().memory_info().rss),
        )


def about(service: EngineService, model: str) -> Json:
    """What stays as long as a model is open.

    `neurons.places`: base64 of a byte for each layer and bucket of rows, hottest rows first: an index into
    `neurons.residences`, where most of its rows lie. `memory`: bytes placed on each unit by purpose, and its budget.
    """
    engine = service.engine
    spec, units, load = engine.directory.spec, engine.machine.units, engine.load()
    firing = engine.firing() if engine.options.tally else None
    return {
        "model": model,
        "mode": engine.options.mode,
        "format": engine.directory.weight_format,
        "context": engine.context,
        "layers": spec.n_layers,
        "rows": spec.n_neurons,
        "slots": load.slots,
        "queue": service.queue,
        "pages": {"total": load.pages_total, "bytes": load.page_bytes, "tokens": PAGE_TOKENS},
        "memory": {
            name: {"used": dict(unit.used), "budget": unit.budget} for name, unit in units.items() if unit.total
        },
        "neurons": None
        if firing is None
        else {
            "bucket_rows": firing.bucket_rows,
            "buckets": len(firing.bucket_sizes),
            "residences": list(RESIDENCES),
            "places": _packed(firing.resident.astype(np.uint8)),
        },
    }


def between(engine: Engine, before: Look, now: Look) -> Json:
    """What happened from one look to the next.

    `speed`: tokens a second that were sampled, and that were read of prompts, by the clock on the wall. `rows`: of all
    layers, computed for a token on average, by unit; None where none passed, as `bytes`, those that a sampled token
    touched. `fired`: base64 of a byte for each layer and bucket, 255 times the square root of the share of its rows
    that fired for a token: what seldom fires is still told from what never does.
    """
    seconds = max(now.seconds - before.seconds, 1e-6)
    decode, prefill = _since(before.decode, now.decode), _since(before.prefill, now.prefill)
    tokens = decode.tokens + prefill.tokens
    rows = {name: decode.rows(name).finished + prefill.rows(name).finished for name in engine.machine.units}
    load = now.load
    return {
        "seconds": round(seconds, 3),
        "requests": {"running": load.running, "waiting": max(0, now.outstanding - load.running)},
        "pages": {"used": load.pages_used, "cached": load.pages_cached},
        "speed": {"decode": round(decode.tokens / seconds, 2), "prompt": round(prefill.tokens / seconds, 2)},
        "tokens": {
            "decode": now.decode.tokens,
            "prompt": load.prompt_tokens,
            "cached": load.cached_prompt_tokens,
        },
        "rows": {name: round(count / tokens, 1) for name, count in rows.items()} if tokens else None,
        "bytes": round(bytes_per_token(engine, decode)) if decode.tokens else None,
        "resident": now.resident,
        "fired": _fired(before.firing, now.firing),
    }


def _fired(before: Firing | None, now: Firing | None) -> str | None:
    if before is None or now is None or now is before:
        return None
    shares = np.clip(now.shares(before), 0, 1)
    return _packed(np.rint(255 * np.sqrt(shares)).astype(np.uint8))


def _packed(table: NDArray[np.uint8]) -> str:
    return base64.b64encode(table.tobytes()).decode("ascii")


def _since(before: Activity, now: Activity) -> Activity:
    """What an activity gained."""
    gained = copy.deepcopy(now)
    gained.add(before, -1.0)
    return gained
