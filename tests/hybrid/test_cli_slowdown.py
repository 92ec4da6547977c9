"""`--slowdown` as a user types it: the same text, and a clear word where it makes no sense."""

import pytest

from hybrid.cli_options import parse_slowdown
from hybrid.ops import cpu
from hybrid.stages import compare as stage
from hybrid.stages.peers.engine_worker import ThisEngine
from hybrid.stages.shipped import CHECKPOINT
from profiler.artifacts import UserError


@pytest.fixture
def pools(monkeypatch):
    """The pools that are made, as threads' makers see them."""
    made, make = [], cpu.Pool

    def remember(*arguments):
        made.append(make(*arguments))
        return made[-1]

    monkeypatch.setattr(cpu, "Pool", remember)
    return made


def test_run_on_unequal_units(hybrid, demo_copy, pools):
    assert hybrid("plan", demo_copy, "--vram", "8MiB", "--context", 256)[0] == 0
    on_both = ("--second-device", "cpu")
    plain = hybrid("run", demo_copy, "class Stack:", "-n", 8, *on_both)
    pools.clear()
    slowed = hybrid("run", demo_copy, "class Stack:", "-n", 8, *on_both, "--slowdown", "gpu=1.5", "--slowdown", "cpu=2")
    assert (slowed[0], slowed[1]) == (0, plain[1])
    assert {pool.slowdown for pool in pools} == {2.0, 1.5}
    assert all(pool.waits > 0 for pool in pools)


def test_compare_slows_every_contender_of_this_engine(refused, demo_copy, heldout, pools, monkeypatch, tmp_path):
    text = tmp_path / "text.py"
    text.write_text(heldout[:20_000], encoding="utf-8")

    def measured(contenders, *_):
        assert {one.program for one in contenders} == {"hybrid"}, "others cannot be slowed"
        for one in contenders:
            engine = ThisEngine()
            engine.open(**one.arguments)
            engine.close()
        raise UserError("that was it")

    monkeypatch.setattr(stage, "measure", measured)
    options = ("--vram", "8MiB", "--context", 256, "--second-device", "cpu", "--slowdown", "cpu=3", "--text", text)
    assert "that was it" in refused("compare", demo_copy, *options, "--checkpoint", CHECKPOINT)
    assert sorted(pool.slowdown for pool in pools) == [1.0] * 5 + [3.0] * 5
    assert "--second-device cpu" in refused("compare", demo_copy, "--text", text, "--slowdown", "cpu=3")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--slowdown", "gpu"), "gpu=RATIO or cpu=RATIO"),
        (("--slowdown", "gpu=fast"), "not 'gpu=fast'"),
        (("--slowdown", "gpu=nan"), "not 'gpu=nan'"),
        (("--slowdown", "gpu=2", "--slowdown", "gpu=3"), "once for each"),
        (("--slowdown", "gpu=2"), "--second-device cpu"),
    ],
)
def test_what_makes_no_sense_is_said(hybrid, demo, given, message):
    code, out, err = hybrid("run", demo, "import ", "-n", 2, *given)
    assert code == 1
    assert out == ""
    assert err.startswith("hybrid: ")
    assert message in err


@pytest.mark.parametrize(("given", "message"), [("gpu=0.5", "1 to 100 times"), ("tpu=2", "units are gpu and cpu")])
def test_what_the_engine_refuses_is_said(hybrid, demo_copy, given, message):
    assert hybrid("plan", demo_copy, "--vram", "8MiB", "--context", 256)[0] == 0
    code, _, err = hybrid("run", demo_copy, "import ", "--second-device", "cpu", "--slowdown", given)
    assert code == 1
    assert message in err


def test_ratios_by_unit():
    assert parse_slowdown(None) == {}
    assert parse_slowdown(["gpu=3", "cpu=1.25"]) == {"gpu": 3.0, "cpu": 1.25}
    with pytest.raises(UserError, match="not '=2x'"):
        parse_slowdown(["=2x"])
