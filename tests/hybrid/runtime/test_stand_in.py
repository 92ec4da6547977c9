"""The stand-in made unequal to its host: slowed units and units with cores of their own, in a model that is open."""

import contextlib
import os
import threading
from pathlib import Path

import pytest
import torch

from hybrid.runtime import cores as cores_file
from hybrid.runtime.options import EngineOptions
from hybrid.stages.opening import open_engine
from hybrid.stages.plan import baseline_plans
from hybrid.store.directory import ModelDirectory
from profiler.artifacts import UserError

TOKENS = 24
ALLOWED = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
two_cores = pytest.mark.skipif(len(ALLOWED) < 2, reason="needs two cores")


@pytest.fixture(scope="module")
def whole_layers(demo, split_plan):
    """The first layers on the stand-in, the others on the host; none is split."""
    with ModelDirectory.open(demo) as directory:
        return next(iter(baseline_plans(directory, split_plan.budgets, "f32", 0).values()))


def ids_of(engine, heldout):
    return engine.tokenizer.encode(heldout)[:TOKENS]


def threads():
    return {int(folder.name) for folder in Path("/proc/self/task").iterdir()}


def waits(engine):
    return {name: unit.pool.waits for name, unit in engine.machine.units.items()}


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("mode", ["dense", "exact", "predicted"])
def test_slowed_units_give_the_same_bits(
    open_stand_in, split_plan, heldout, complete, without_recorded_step, mode, recorded
):
    found = []
    for slowdown in ({}, {"gpu": 3.0}, {"cpu": 1.5, "gpu": 2.0}):
        with open_stand_in(split_plan, mode, slowdown=slowdown) as engine:
            if not recorded:
                without_recorded_step(engine)
            ids = ids_of(engine, heldout)
            found.append((engine.logits(ids), engine.logits(ids, one_by_one=True), complete(engine, [ids[:9]], 6)))
            for name, unit in engine.machine.units.items():
                ratio = slowdown.get(name, 1.0)
                assert unit.pool.slowdown == ratio
                assert (unit.pool.waits > 0) == (ratio > 1)
                assert unit.pool.waited_seconds >= (ratio - 1) * unit.pool.worked_seconds - 1e-9 * unit.pool.waits
    for texts, singles, completions in found[1:]:
        assert torch.equal(texts, found[0][0])
        assert torch.equal(singles, found[0][1])
        assert completions == found[0][2]


@pytest.mark.parametrize("mode", ["dense", "predicted"])
def test_every_operator_of_a_step_belongs_to_a_unit(open_stand_in, whole_layers, heldout, mode):
    """Where both units are slowed and no layer is split, nothing that a step does is outside what was slowed."""
    with open_stand_in(whole_layers, mode, slowdown={"gpu": 1.25, "cpu": 1.5}) as engine:
        assert {layer.attention for layer in whole_layers.layers} == {"gpu", "cpu"}
        engine.hidden_states(ids_of(engine, heldout)[:8], one_by_one=True)
        pools = [unit.pool for unit in engine.machine.units.values()]
        assert all(pool.waits > 0 for pool in pools)
        steps = sum(engine.machine.recorded.seconds().values())
        assert steps == pytest.approx(sum(pool.worked_seconds + pool.waited_seconds for pool in pools), rel=1e-9)


def test_a_step_waits_once_for_each_operator(open_stand_in, split_plan, heldout):
    """So many waits per token, whatever the token, and all of the other unit's rows among them."""
    with open_stand_in(split_plan, "dense", slowdown={"gpu": 2.0, "cpu": 2.0}) as engine:
        ids, counted = ids_of(engine, heldout), []
        for count in (1, 4, 9):
            before = sum(waits(engine).values())
            engine.hidden_states(ids[:count], one_by_one=True)
            counted.append((sum(waits(engine).values()) - before) / count)
        spec = engine.directory.spec
        banks = sum(len(layer.near_banks) + len(layer.far_banks) for layer in engine.machine.scheduler.layers)
        sums = sum(bool(layer.near_banks and layer.far_banks) for layer in engine.machine.scheduler.layers)
    # Embeddings, angles and the last norm; two norms, products, rotations and sums, pages and attention of each layer.
    assert counted == [3 + 10 * spec.n_layers + banks + sums] * 3


def test_the_overlap_of_a_recorded_step_is_counted(open_stand_in, split_plan, complete):
    with open_stand_in(split_plan, "dense") as engine:
        complete(engine, [[5, 6, 7]], 4)
        decode, overlap = engine.ledger.decode, engine.ledger.decode.overlap
        assert overlap.near > 0
        assert overlap.far > 0
        assert overlap.wait > 0
        assert overlap.near + overlap.wait < decode.native_seconds <= decode.seconds
        assert 0 <= decode.hidden_share <= 1


@two_cores
@pytest.mark.parametrize("recorded", [True, False])
def test_units_compute_on_their_cores_and_the_caller_goes_back(
    open_stand_in, split_plan, heldout, without_recorded_step, recorded
):
    at_rest, me, others = frozenset(os.sched_getaffinity(0)), threading.get_native_id(), threads()
    first, last = frozenset(ALLOWED[:1]), frozenset(ALLOWED[-1:])
    stop, mine, lanes = threading.Event(), set(), set()

    def watch():
        while not stop.is_set():
            mine.add(frozenset(os.sched_getaffinity(me)))
            for thread in threads() - others:
                with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                    lanes.add(frozenset(os.sched_getaffinity(thread)))

    pins = {"gpu": tuple(first), "cpu": tuple(last)}
    with open_stand_in(split_plan, "dense", cores=pins, slowdown={"gpu": 20.0, "cpu": 20.0}) as engine:
        if not recorded:
            without_recorded_step(engine)
        assert [unit.pool.threads for unit in engine.machine.units.values()] == [1, 1]
        ids, watcher = ids_of(engine, heldout)[:2], threading.Thread(target=watch)
        watcher.start()
        try:
            for _ in range(500):  # far more often than it takes
                engine.logits(ids, one_by_one=True)
                assert os.sched_getaffinity(0) == at_rest
                if first in mine and last in lanes:
                    break
        finally:
            stop.set()
            watcher.join()
    assert first in mine <= {first, at_rest}  # the attention of all layers is there
    assert last in lanes <= {last, at_rest}
    assert os.sched_getaffinity(0) == at_rest


@two_cores
def test_cores_change_no_bit(open_stand_in, split_plan, heldout):
    with (
        open_stand_in(split_plan) as free,
        open_stand_in(split_plan, cores={"gpu": tuple(ALLOWED[1:]), "cpu": (ALLOWED[0],)}) as pinned,
    ):
        ids = ids_of(free, heldout)
        assert pinned.machine.units["gpu"].pool.threads == len(ALLOWED) - 1
        assert torch.equal(free.logits(ids), pinned.logits(ids))


@pytest.mark.skipif(not ALLOWED, reason="threads are not kept on cores here")
def test_the_host_alone_may_have_cores(demo):
    with open_engine(demo, mode="exact", cores={"cpu": (ALLOWED[0],)}) as engine:
        assert engine.machine.units["cpu"].pool.cores == [ALLOWED[0]]
        engine.logits([5, 6])


@pytest.mark.parametrize("ratio", [0.0, 0.5, -1.0, 101.0, float("inf"), float("nan")])
def test_ratios_that_make_no_sense(split_plan, ratio):
    with pytest.raises(UserError, match="takes 1 to 100 times"):
        EngineOptions(mode="dense", plan=split_plan, second_device="cpu", slowdown={"gpu": ratio})


@pytest.mark.parametrize("device", [None, "cuda"])
def test_only_a_stand_in_and_its_host_are_slowed(split_plan, device):
    with pytest.raises(UserError, match="--second-device cpu"):
        EngineOptions(mode="dense", plan=split_plan, second_device=device, slowdown={"cpu": 2.0})


@pytest.mark.parametrize("options", [{"slowdown": {"disk": 2.0}}, {"cores": {"disk": (0,), "cpu": (1,)}}])
def test_units_that_do_not_exist(split_plan, options):
    with pytest.raises(UserError, match="'disk' is no unit; units are gpu and cpu"):
        EngineOptions(mode="dense", plan=split_plan, second_device="cpu", **options)


@pytest.mark.parametrize(
    ("cores", "device", "message"),
    [
        ({"gpu": (0,)}, "cpu", "give cores to both units"),
        ({"gpu": (0,), "cpu": ()}, "cpu", "of its own"),
        ({"gpu": (0,), "cpu": (1, 0)}, "cpu", "of its own"),
        ({"gpu": (0,), "cpu": (1, 1)}, "cpu", "of its own"),
        ({"gpu": (0,), "cpu": (1,)}, "cuda", "only a stand-in"),
    ],
)
def test_cores_that_make_no_sense(split_plan, cores, device, message):
    with pytest.raises(UserError, match=message):
        EngineOptions(mode="dense", plan=split_plan, second_device=device, cores=cores)


def test_threads_and_cores_are_not_both_given():
    with pytest.raises(UserError, match="either threads or cores"):
        EngineOptions(mode="dense", threads=2, cores={"cpu": (0,)})


@pytest.mark.skipif(not ALLOWED, reason="threads are not kept on cores here")
@pytest.mark.parametrize("core", [-1, 1023, 1 << 40])
def test_cores_that_the_process_may_not_use(demo, core):
    with pytest.raises(UserError, match=rf"may not run on CPU {core}; it may on {ALLOWED[0]}"):
        open_engine(demo, mode="exact", cores={"cpu": (ALLOWED[0], core)})


def test_a_system_that_keeps_no_thread_on_cores(monkeypatch):
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    cores_file.require_cores([])
    with pytest.raises(UserError, match="leave the cores out"):
        cores_file.require_cores([0])
