"""Commands that are told nothing: what they choose, what they say of it in one line, and budgets of both memories."""

import pytest
import torch

from hybrid import LLM, SamplingParams
from hybrid.runtime import cuda_torch
from hybrid.runtime.nvidia_driver import Gpu, NvidiaDriver
from hybrid.stages import kept_plans, opening
from hybrid.stages.pack import pack
from profiler.artifacts import UserError

RUN = ("run", "--context", 256, "-n", 6)
SIX = SamplingParams(max_tokens=6)


@pytest.fixture
def cache(tmp_path, monkeypatch, demo):
    """A cache without kept plans; the demo is where it was."""
    monkeypatch.setattr(kept_plans, "cache_directory", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def whole(hybrid, demo):
    """What the demo writes, all of it in place."""
    code, out, _ = hybrid(*RUN, demo, "def main(")
    assert code == 0
    return out


def lines_of(model, err):
    return [line for line in err.splitlines() if line.startswith(f"{model}: ")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is used")
def test_a_machine_without_a_gpu_says_that_the_cpu_computes(hybrid, demo):
    code, _, err = hybrid(*RUN, demo, "def main(")
    assert (code, lines_of(demo, err)) == (0, [f"{demo}: predicted mode, all of it on the CPU, 13.3 MiB"])


def test_a_budget_of_host_memory_reads_the_rest_from_the_drive(hybrid, demo, cache, whole):
    for how in ("planned now for", "by the plan made before for"):
        code, out, err = hybrid(*RUN, demo, "def main(", "--vram", 0, "--ram", "8MiB")
        assert (code, out) == (0, whole)
        (line,) = lines_of(demo, err)
        assert line.startswith(f"{demo}: predicted mode, {how} 8.0 MiB of RAM, ")
        assert line.endswith(" MiB of neurons on the drive")
        assert "of neurons left on flash, which page faults fetch" in err
    assert len(list((cache / "plans").glob("*/*.json"))) == 1


def test_both_budgets_at_once(hybrid, demo, cache, whole):
    both = ("--second-device", "cpu", "--vram", "7MiB", "--ram", "7.5MiB")
    code, out, err = hybrid(*RUN, demo, "def main(", *both)
    assert (code, out) == (0, whole)
    (line,) = lines_of(demo, err)
    assert "planned now for 7.0 MiB of GPU memory and 7.5 MiB of RAM, " in line
    assert "neurons on the gpu, " in line and "neurons on the drive" in line


def test_budgets_that_cannot_be_kept_are_refused(refused, demo, cache):
    assert "the plan does not fit" in refused(*RUN, demo, "x", "--vram", 0, "--ram", "1MiB")
    assert "--plan, or --vram and --ram" in refused(*RUN, demo, "x", "--plan", "default", "--ram", "8MiB")
    assert "--no-mmap reads all of them" in refused(*RUN, demo, "x", "--vram", 0, "--ram", "8MiB", "--no-mmap")
    assert "not a size" in refused(*RUN, demo, "x", "--ram", "some")
    assert "give its size with --vram" in refused(*RUN, demo, "x", "--ram", "8MiB", "--second-device", "cpu")


def test_a_model_that_was_not_profiled_is_exact_and_names_what_would_be_faster(hybrid, llama_directory):
    code, _, err = hybrid("run", llama_directory, "def", "-n", 2, "--vram", 0)
    (line,) = lines_of(llama_directory, err)
    assert code == 0 and line.startswith(f"{llama_directory}: exact mode, all of it on the CPU, ")
    assert line.endswith(f"hybrid profile {llama_directory} --text FILE")
    code, _, err = hybrid("run", llama_directory, "def", "-n", 2, "--vram", 0, "--mode", "exact")
    assert "hybrid profile" not in err, "who chose the mode is not told of others"


def test_a_model_without_exact_zeros_is_dense_and_names_thresholds(hybrid, make_llama, tmp_path):
    path = tmp_path / "silu"
    pack(make_llama(tmp_path, hidden_act="silu"), path)
    code, _, err = hybrid("run", path, "def", "-n", 2, "--vram", 0)
    (line,) = lines_of(path, err)
    assert code == 0 and line.startswith(f"{path}: dense mode, ")
    assert "silu is never exactly zero" in line and f"hybrid calibrate {path} --text FILE" in line


def test_a_model_that_was_not_profiled_is_planned_for_too(llama_directory, cache):
    heard = []
    with LLM(llama_directory, device="cpu", vram="1MiB", context=64, max_sequences=1, inform=heard.append) as llm:
        split = llm.generate("def", SIX)[0].token_ids
        assert llm.mode == "exact" and llm.summary().rows_per_token["gpu"] > 0
    with LLM(llama_directory, vram=0, context=64, max_sequences=1) as llm:
        assert llm.generate("def", SIX)[0].token_ids == split
    (line,) = heard
    assert "exact mode, planned now for 1.0 MiB of GPU memory" in line and "hybrid profile" in line


def test_chat_and_serve_take_the_same_budgets(hybrid):
    for command in ("run", "chat", "serve"):
        code, out, _ = hybrid(command, "--help")
        assert code == 0 and all(option in out for option in ("--vram", "--ram", "--context", "--plan"))


def test_a_gpu_that_torch_was_not_built_for_is_named_with_the_command_that_mends_it(hybrid, demo, monkeypatch):
    card = Gpu("NVIDIA GeForce RTX 4060 Laptop GPU", "8.9", 8 << 30)
    driver = NvidiaDriver((card,), "550.54.15", (12, 4), usable=True, hidden=False)
    monkeypatch.setattr(cuda_torch, "find_driver", lambda: driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    code, out, err = hybrid(*RUN, demo, "def main(")
    assert code == 0 and out.startswith("def main(")
    (line,) = (line for line in err.splitlines() if line.startswith("warning: "))
    assert "computed on the CPU alone: the NVIDIA GeForce RTX 4060 Laptop GPU is not used" in line
    assert line.endswith(
        "-m pip install --force-reinstall 'torch>=2.6,<2.14' --index-url https://download.pytorch.org/whl/cu126"
    )
    assert "warning" not in hybrid(*RUN, demo, "def main(", "--vram", 0)[2], "who leaves the GPU alone knows"


def test_named_plans_have_their_own_budgets(demo_copy):
    with pytest.raises(UserError, match="a plan has budgets of its own"):
        opening.open_engine(demo_copy, plan="default", ram=1 << 30)
