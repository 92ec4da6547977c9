"""Who takes part within a budget, with a GPU and without: plans, caps, numbers of layers, and why others do not."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hybrid.stages import compare_peers
from hybrid.stages.compare_contenders import (
    Absent,
    Contender,
    Settings,
    context_of_a_process,
    hybrid_contenders,
    layer_wise_contenders,
    prepare,
    with_context,
)
from hybrid.stages.compare_peers import peer_contenders
from hybrid.store.files import ModelFiles
from placement.plan_file import read_plan
from profiler.artifacts import UserError

MIB = 1 << 20
SMALL = {"tokens": 4, "prompt_tokens": 16, "context": 64}
MATRIX = 64 * 64 * 2
LAYER, HEAD = 3 * MATRIX, 3 * MATRIX


@pytest.fixture
def setup(demo, tmp_path):
    """`setup(**settings) -> (setup, named plan, figures)` of the demo."""

    def make(files=None, **settings):
        files = files or ModelFiles.open_files(demo)
        return prepare(files, Settings(**{**SMALL, **settings}), tmp_path)

    return make


@pytest.fixture
def gguf_file(tmp_path):
    """`gguf_file(layers)`: two matrices of an FFN and one of attention in each, and a head as large as a layer."""

    gguf = pytest.importorskip("gguf")

    def make(layers):
        writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
        sizes = {"output.weight": 3}
        for layer in range(layers):
            sizes |= {
                f"blk.{layer}.ffn_up.weight": 1,
                f"blk.{layer}.ffn_down.weight": 1,
                f"blk.{layer}.attn_q.weight": 1,
            }
        for name, blocks in sizes.items():
            writer.add_tensor(name, np.ones((blocks * 64, 64), np.float16))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / "model.gguf"

    return make


def names(found, kind=Contender):
    return [one.name for one in found if isinstance(one, kind)]


def test_plans_are_made_for_the_budget_and_the_mode(setup, tmp_path):
    made, named, given = setup(vram=7 * MIB, device="cpu")
    found = hybrid_contenders(made, named, given)
    assert names(found) == ["exact, planned", "predicted, planned"]
    for one in found:
        plan = read_plan(tmp_path / f"made-{one.mode}.json")
        assert one.arguments["plan"] == str(tmp_path / f"made-{one.mode}.json")
        assert (plan.mode, plan.budgets.vram, plan.budgets.context) == (one.mode, 7 * MIB, 64)
        assert (one.kind, one.vram, one.arguments["device"]) == ("hybrid", 7 * MIB, "cpu")


def test_a_plan_that_is_named_runs_in_every_mode_and_has_a_budget_of_its_own(hybrid, demo_copy, setup):
    assert hybrid("plan", demo_copy, "--vram", "6MiB", "--context", 64)[0] == 0
    files = ModelFiles.open_files(demo_copy)
    found = hybrid_contenders(*setup(files, plan="default", vram=7 * MIB, device="cpu"))
    modes = [f"{mode}, {plan}" for mode in ("exact", "predicted") for plan in ("plan default", "planned")]
    assert [(one.name, one.vram) for one in found] == list(zip(modes, [6 * MIB, 7 * MIB] * 2, strict=True))
    alone, *_ = setup(files, plan="default", device="cpu")
    assert (alone.budgets.vram, alone.budgets.context) == (6 * MIB, 64)
    with pytest.raises(UserError, match=r"6\.0 MiB.*5\.0 MiB"):
        setup(files, plan="default", vram=5 * MIB, device="cpu")


def test_layer_wise_plans_are_dense_and_what_does_not_fit_says_why(setup):
    made, *_ = setup(vram=7 * MIB, device="cpu")
    found = layer_wise_contenders(made)
    assert names(found)[1:] == ["attention-on-gpu", "everything-on-cpu"] and names(found)[0].startswith("first-")
    assert {(one.mode, one.kind) for one in found} == {("dense", "layer-wise")}
    assert all(one.arguments["plan"] for one in found), "the CPU is the half of the machine that stands for one"
    assert [one.reason for one in found if isinstance(one, Absent)] == []
    made, *_ = setup(vram=1 * MIB, device="cpu")
    (missing,) = (one for one in layer_wise_contenders(made) if isinstance(one, Absent))
    assert missing.name == "attention-on-gpu" and "missing" in missing.reason


def test_with_a_gpu_the_cpu_alone_needs_no_plan(setup):
    made, *_ = setup(vram=7 * MIB, device="cuda")
    alone = layer_wise_contenders(made)[-1]
    assert (alone.name, alone.vram) == ("everything-on-cpu", 0)
    assert alone.arguments["plan"] is None and alone.arguments["device"] is None


def test_what_a_process_takes_of_a_gpu_is_counted_in_every_plan(setup, tmp_path):
    made, named, given = setup(vram=7 * MIB, device="cuda")
    counted, figures = with_context(made, given, 2 * MIB)
    assert (counted.gpu_context, figures.hardware.context) == (2 * MIB, 2 * MIB)
    for one in (*layer_wise_contenders(counted)[:2], *hybrid_contenders(counted, named, figures)):
        plan = read_plan(Path(one.arguments["plan"]))
        assert plan.bytes["gpu"]["context"] == 2 * MIB and plan.total_bytes("gpu") <= 7 * MIB
    again, figures = with_context(counted, figures, MIB)
    assert (again.gpu_context, figures.hardware.context) == (2 * MIB, 2 * MIB), "what was measured before counts"
    assert with_context(made, None, MIB)[0].gpu_context == MIB


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_a_process_says_so():
    with pytest.raises(UserError, match="--second-device cpu"):
        context_of_a_process()


def test_without_a_budget_everything_is_on_the_cpu(setup):
    made, named, given = setup()
    assert (made.budgets, made.device, named, given) == (None, None, None, None)
    found = [*layer_wise_contenders(made), *hybrid_contenders(made, named, given)]
    assert names(found) == ["everything-on-cpu", "exact", "predicted"]
    assert {one.arguments["plan"] for one in found} == {None}


def test_every_copy_in_memory_counts(setup, demo):
    made, *_ = setup(mmap=False)
    size = sum(path.stat().st_size for path in [*demo.glob("*.safetensors"), *demo.glob("neurons/*")])
    assert size <= layer_wise_contenders(made)[0].ram < 1.1 * size


def test_others_are_not_measured_without_their_files_and_say_so(setup):
    made, *_ = setup(vram=7 * MIB, device="cuda")
    found = peer_contenders(made)
    assert names(found, Absent) == ["accelerate, device_map", "llama.cpp, -ngl", "llama.cpp, FFN on the CPU"]
    assert ["--checkpoint" in one.reason or "--gguf" in one.reason for one in found] == [True] * 3


def test_llama_gets_the_layers_that_fit(setup, gguf_file, monkeypatch):
    monkeypatch.setattr(compare_peers, "_interpreter", lambda program, preferred: "/other/python")
    made, *_ = setup(vram=7 * MIB, device="cuda", gguf=gguf_file(6))
    kv = 2 * made.files.spec.kv_size * 2 * 64

    def within(budget):
        made, *_ = setup(vram=budget, device="cuda", gguf=gguf_file(6))
        return [one for one in peer_contenders(made) if one.program == "llama.cpp"]

    layers, ffn = within(7 * MIB)
    assert (layers.name, layers.arguments["gpu_layers"]) == ("llama.cpp, -ngl 7", 7)
    assert (layers.python, layers.module) == ("/other/python", "hybrid.stages.peers.llama_worker")
    assert (ffn.name, ffn.arguments["gpu_layers"], ffn.arguments["ffn_on_cpu"]) == ("llama.cpp, FFN on the CPU", 7, 1)
    assert "its own activation, not with relu" in layers.unscored
    assert "other bits" in layers.note, "the demo is larger"
    layers, ffn = within(3 * (LAYER + kv) + HEAD)
    assert layers.arguments["gpu_layers"] == 3
    assert 6 * (MATRIX + kv) > 3 * (LAYER + kv) and "attention, head and KV pages take" in ffn.reason
    lowered = layers.lowered(1)
    assert (lowered.name, lowered.arguments["gpu_layers"]) == ("llama.cpp, -ngl 2", 2)
    assert layers.lowered(2 * (LAYER + kv) + 1) is None
    assert [type(one) for one in within(1024)] == [Absent, Absent]


def test_accelerate_gets_what_keys_and_values_leave(setup, monkeypatch):
    monkeypatch.setattr(compare_peers, "_interpreter", lambda program, preferred: "/other/python")
    from hybrid.stages.shipped import CHECKPOINT

    made, *_ = setup(vram=7 * MIB, device="cuda", checkpoint=CHECKPOINT)
    spec = made.files.spec
    (one,) = (one for one in peer_contenders(made) if one.program == "accelerate")
    assert one.arguments["vram"] == 7 * MIB - spec.n_layers * 2 * spec.kv_size * 2 * 64
    assert (one.arguments["dtype"], one.vram) == ("bfloat16", 7 * MIB)
    assert one.lowered(MIB).arguments["vram"] == one.arguments["vram"] - MIB
    assert one.lowered(7 * MIB) is None
    made, *_ = setup(vram=4096, device="cuda", checkpoint=CHECKPOINT)
    assert "--context" in peer_contenders(made)[0].reason


def test_other_programs_beside_a_stand_in_have_its_threads_and_no_gpu(setup, monkeypatch):
    from hybrid.stages.shipped import CHECKPOINT

    made, *_ = setup(vram=7 * MIB, device="cpu", threads=4, checkpoint=CHECKPOINT)
    (one,) = (one for one in peer_contenders(made) if isinstance(one, Contender))
    assert one.name == "transformers, on the CPU alone"
    assert (one.arguments["threads"], one.environment["CUDA_VISIBLE_DEVICES"], one.vram) == (2, "", 0)


def test_a_program_that_is_not_installed_is_named_with_the_command(setup, gguf_file, monkeypatch):
    monkeypatch.setitem(compare_peers.PACKAGES, "llama.cpp", ("no_such_package",))
    made, *_ = setup(gguf=gguf_file(6))
    (missing,) = (one for one in peer_contenders(made) if one.program == "llama.cpp")
    assert "no_such_package" in missing.reason and "pip install" in missing.reason


def test_a_gguf_of_another_model_is_refused(setup, gguf_file, monkeypatch):
    monkeypatch.setattr(compare_peers, "_interpreter", lambda program, preferred: "/other/python")
    made, *_ = setup(gguf=gguf_file(5))
    with pytest.raises(UserError, match=r"5 layers and .* 6"):
        peer_contenders(made)


def test_settings_that_make_no_sense_are_refused():
    for wrong in ({"rounds": 0}, {"prompts": 0}, {"tokens": 0}, {"prompt_tokens": 1}, {"kv_format": "f8"}):
        with pytest.raises(UserError):
            Settings(**wrong)
