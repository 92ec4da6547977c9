"""`hybrid compare`: the demo beside layer-wise offload on a stand-in, as a user types it; what it refuses; Ctrl-C."""

import json
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch

from hybrid.stages.shipped import CHECKPOINT, HELDOUT_TEXT

QUICKLY = ("--text", HELDOUT_TEXT, "--rounds", 1, "--prompts", 1, "--prompt-tokens", 32, "-n", 4)
ON_STAND_IN = ("--vram", "8MiB", "--second-device", "cpu", "--context", 256)


def test_everybody_within_one_budget(hybrid, demo, tmp_path):
    options = (*ON_STAND_IN, *QUICKLY, "--text-tokens", 300, "--checkpoint", CHECKPOINT)
    code, out, err = hybrid("compare", demo, *options, "--plot", tmp_path / "compare.png", "--json")
    assert (code, err) == (0, "")
    body = json.loads(out)
    rows = {row["name"]: row for row in body["rows"]}
    layer_wise = ["attention-on-gpu", "everything-on-cpu", next(name for name in rows if name.startswith("first-"))]
    sparse = ["exact, planned", "predicted, planned"]
    others = ["transformers, on the CPU alone", "llama.cpp, on the CPU alone"]
    assert set(rows) == {*layer_wise, *sparse, *others}
    llama = rows.pop("llama.cpp, on the CPU alone")
    assert "--gguf FILE" in llama["reason"] and llama["tokens_per_second"] is None
    for name, row in rows.items():
        assert row["reason"] is None and row["tokens_per_second"] > 0 and row["first_token_seconds"] > 0, name
        assert row["kind"] == ("hybrid" if name in sparse else "layer-wise")
        assert row["ram"] >= row["ram_proportional"] > 10 << 20 and len(row["rounds"]) == 1
    dense = rows["everything-on-cpu"]["perplexity"]
    for name in (*layer_wise, "exact, planned"):
        assert rows[name]["perplexity"] == pytest.approx(dense, rel=1e-4), "dense and exact are one function"
        assert rows[name]["agreement"] > 0.999
    assert rows[others[0]]["perplexity"] == pytest.approx(dense, rel=0.01), "the same weights, in bf16 throughout"
    assert 0.98 < rows["predicted, planned"]["over_dense"] < 1.02
    assert rows["predicted, planned"]["over_dense"] != 1
    for name, row in rows.items():
        assert (row["vram"] is None) == (name in others)
        assert row["vram"] is None or (row["vram"] > 0) == (name != "everything-on-cpu")
        assert row["vram"] is None or row["vram"] <= 8 << 20
    assert rows["predicted, planned"]["bytes_per_token"] < rows["attention-on-gpu"]["bytes_per_token"]
    best = body["headline"]["baseline"]
    assert rows[best]["ratio"] == 1.0 and rows[best]["kind"] == "layer-wise"
    assert body["headline"]["contender"] in sparse
    assert body["headline"]["sentence"].endswith(f"as fast as {best}, the fastest layer-wise form of this run")
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_interrupted_it_leaves_no_process(demo):
    command = [sys.executable, "-m", "hybrid.cli", "compare", "demo", "--rounds", "1000"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    parent = psutil.Process(running.pid)
    deadline = time.monotonic() + 60
    while len(children := parent.children(recursive=True)) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert len(children) == 3
    assert not psutil.wait_procs(children, timeout=10)[1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--second-device", "cpu", "--vram", "lots"), "not a size"),
        (("--plan", "none", "--second-device", "cpu"), "hybrid plan"),
        pytest.param(
            ("--vram", "8MiB", "--context", 256),
            "--second-device cpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        ((*ON_STAND_IN, "--prompt-tokens", 252), "--prompt-tokens"),
        ((*ON_STAND_IN, "--plot", "compare.pdf"), "PNG file"),
        ((*ON_STAND_IN, "--plot", "/nowhere/compare.png"), "PNG file"),
        ((*ON_STAND_IN, "--checkpoint", "/nowhere"), "/nowhere"),
        ((*ON_STAND_IN, "--checkpoint", CHECKPOINT, "--peer-python", "/nowhere/python"), "--peer-python"),
    ],
)
def test_mistakes_are_named_before_anything_is_measured(refused, demo, given, said, monkeypatch):
    monkeypatch.setattr("hybrid.stages.compare.measure", lambda *_: pytest.fail("it was measured"))
    assert said in refused("compare", demo, *QUICKLY, *given)


def test_a_checkpoint_of_another_model_is_refused(refused, demo, llama_checkpoint):
    said = refused("compare", demo, *QUICKLY, *ON_STAND_IN, "--checkpoint", llama_checkpoint)
    assert "another model" in said and "--checkpoint" in said


def test_a_text_without_a_long_document_is_refused(refused, demo, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("def f(): pass\n" * 5)
    assert "--prompt-tokens" in refused("compare", demo, "--text", text)
