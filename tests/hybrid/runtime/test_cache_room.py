"""How many pages there are, where nobody says, where somebody does, and what of memory they may take."""

from dataclasses import replace

import pytest

from hybrid.runtime import cache_room
from hybrid.runtime.cache_room import CacheRoom, choose_room
from hybrid.runtime.options import EngineOptions
from hybrid.runtime.sizes import page_bytes
from hybrid.stages.opening import open_engine
from hybrid.store.directory import ModelDirectory
from profiler.artifacts import UserError

MIB = 1 << 20


@pytest.fixture(scope="module")
def spec(demo):
    with ModelDirectory.open(demo) as directory:
        return directory.spec


@pytest.fixture
def free(monkeypatch):
    """`free(pages)`: the host has memory for so many pages of the demo."""

    def change(size):
        monkeypatch.setattr(cache_room, "available_memory", lambda: size)

    return change


def test_without_a_word_all_sequences_have_room_and_a_share_of_memory_is_remembered(spec, free):
    page, options = page_bytes(spec, "f16"), EngineOptions("exact", max_sequences=3)
    free(40 * page)
    assert choose_room(spec, options, 160, spec.n_layers) == CacheRoom(30, 10)
    free(8 * page)
    assert choose_room(spec, options, 160, spec.n_layers) == CacheRoom(30, 10), "a text is never too long for it"
    free(1 << 40)
    assert choose_room(spec, options, 160, spec.n_layers) == CacheRoom(30, 30)
    free(0)
    assert choose_room(spec, options, 160, 0) == CacheRoom(30, 30), "what a device holds is taken at once"


def test_pages_that_are_asked_for_are_held_against_memory(spec, free):
    page, options = page_bytes(spec, "f16"), EngineOptions("exact", max_sequences=3, kv_pages=12)
    free(12 * page)
    assert choose_room(spec, options, 160, spec.n_layers) == CacheRoom(12, 12)
    free(12 * page - 1)
    with pytest.raises(UserError, match="12 pages of keys and values take"):
        choose_room(spec, options, 160, spec.n_layers)
    free(6 * page)
    assert choose_room(spec, options, 160, spec.n_layers // 2).pages == 12, "the other layers are elsewhere"
    with pytest.raises(UserError, match=r"a text of 160 tokens takes 10 pages .* there are 9"):
        choose_room(spec, replace(options, kv_pages=9), 160, spec.n_layers)


@pytest.mark.parametrize("options", [{"kv_pages": 0}, {"max_sequences": 0}, {"pace": 0.5}, {"pace": float("nan")}])
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(UserError):
        EngineOptions("exact", **options)


def test_a_plan_that_is_made_now_counts_the_pages_that_are_placed(demo):
    """With few pages more neurons fit the same budget."""
    rows = {}
    for kv_memory in (None, 20 * 98304):
        options = {"vram": 12 * MIB, "context": 256, "max_sequences": 4, "kv_format": "f32", "kv_memory": kv_memory}
        with open_engine(demo, mode="exact", device="cpu", **options) as engine:
            plan, unit = engine.options.plan, engine.machine.units["gpu"]
            attention = sum(layer.attention == "gpu" for layer in plan.layers)
            pages = engine.load().pages_total
            assert pages == (64 if kv_memory is None else 20)
            one = engine.load().page_bytes // engine.directory.spec.n_layers
            assert unit.used["kv"] == plan.bytes["gpu"]["kv"] == attention * pages * one
            assert unit.total <= 12 * MIB
            rows[kv_memory] = sum(plan.gpu_rows(layer) for layer in range(len(plan.layers)))
    assert rows[20 * 98304] > rows[None]
