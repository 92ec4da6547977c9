"""Memory that is left, in trees of control groups as Linux shows them; contexts that do not fit it."""

import psutil
import pytest

from hybrid.runtime import cache_room
from hybrid.runtime.memory import available_memory
from hybrid.runtime.sizes import cache_bytes
from hybrid.stages.opening import open_engine
from hybrid.stages.pack import pack
from hybrid.stages.plan import PlanSettings
from hybrid.stages.plan import plan as make_plan
from profiler.artifacts import UserError

MIB = 1 << 20
UNLIMITED = 9223372036854771712  # version 1 has no word for it
MEMBERSHIP = "4:memory:/a/b\n2:cpu:/elsewhere\n0::/a/b\n"
MOUNTS = {
    2: "25 23 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
    1: "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
}


def write_groups(root, version, groups):
    """`groups`: of each group, relative to the mount, what limits it, its use, and of this cache and shared memory."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(MEMBERSHIP)
    (root / "proc/self/mountinfo").write_text(MOUNTS[version])
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for group, (limit, used, cache, shared) in groups.items():
        folder = root / "sys/fs/cgroup" / ("" if version == 2 else "memory") / group
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in zip(names, (limit, used), strict=True):
            (folder / name).write_text(f"{figure}\n")
        prefix, cache_name = ("", "file") if version == 2 else ("total_", "cache")
        (folder / "memory.stat").write_text(f"anon 5\n{prefix}{cache_name} {cache}\n{prefix}shmem {shared}\n")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("groups", "left"),
    [
        ({"a/b": (5 * MIB, 3 * MIB, 0, 0)}, 2 * MIB),
        ({"a/b": (5 * MIB, 5 * MIB, 3 * MIB, 0)}, 3 * MIB),  # cache can be dropped
        ({"a/b": (5 * MIB, 5 * MIB, 3 * MIB, 2 * MIB)}, MIB),  # but for what is no file's
        ({"a": (4 * MIB, 3 * MIB, 0, 0), "a/b": (5 * MIB, MIB, 0, 0)}, MIB),  # the outer group is the narrower
        ({"a/b": (2 * MIB, 3 * MIB, 0, 0)}, 0),  # a limit that was lowered afterwards
        ({"c": (MIB, 0, 0, 0), "a/b": (2 * MIB, 0, 0, 0)}, 2 * MIB),  # of others
    ],
)
def test_what_control_groups_leave(tmp_path, version, groups, left):
    write_groups(tmp_path, version, groups)
    assert available_memory(tmp_path) == left


@pytest.mark.parametrize(("version", "limit"), [(1, UNLIMITED), (2, "max")])
def test_without_a_limit_it_is_what_the_system_has(tmp_path, monkeypatch, version, limit):
    system = psutil.virtual_memory()._replace(available=123 * MIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: system)
    assert available_memory(tmp_path / "nothing") == 123 * MIB
    write_groups(tmp_path, version, {"": (limit, 0, 0, 0), "a/b": (limit, MIB, 0, 0)})
    assert available_memory(tmp_path) == 123 * MIB


@pytest.fixture(scope="module")
def long_model(make_llama, tmp_path_factory):
    """A tiny model that was trained, it says, for sixteen million positions."""
    folder = tmp_path_factory.mktemp("long")
    return pack(make_llama(folder, max_position_embeddings=1 << 24), folder / "model").destination


def test_a_context_that_no_memory_holds_is_refused_when_the_model_is_opened(long_model):
    refusal = r"keys and values of 16777216 tokens for 4096 sequences take 30\.0 TiB, and .* free; .*smaller --context"
    with pytest.raises(UserError, match=refusal):
        open_engine(long_model, context=1 << 24, max_sequences=4096, kv_format="f32")


def test_a_context_is_held_against_what_is_free(long_model, monkeypatch):
    with open_engine(long_model, context=100) as engine:
        needed = 3 * cache_bytes(engine.directory.spec, 100, "f16")
        placed = [t for layer in engine.decoder.layers for t in (layer.pages.keys, layer.pages.values)]
        assert needed == sum(t.numel() * t.element_size() for t in placed)
    monkeypatch.setattr(cache_room, "available_memory", lambda: needed - 1)
    with pytest.raises(UserError, match=r"100 tokens take 26\.2 KiB, and 26\.2 KiB are free; .*--context"):
        open_engine(long_model, context=100)
    open_engine(long_model).close()  # the model's own context, which most texts never fill
    monkeypatch.setattr(cache_room, "available_memory", lambda: needed)
    open_engine(long_model, context=100).close()


def test_keys_and_values_on_a_second_device_take_nothing_of_the_host(demo, monkeypatch):
    placement = make_plan(demo, PlanSettings(vram=8 * MIB, context=256, name="kept-for-memory")).plan
    assert all(layer.attention == "gpu" for layer in placement.layers)
    monkeypatch.setattr(cache_room, "available_memory", lambda: 0)
    open_engine(demo, mode="exact", plan=placement, device="cpu", context=256).close()
