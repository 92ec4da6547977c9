"""`hybrid compare` with llama.cpp and transformers on the same synthetic weights: all agree on what they compute."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic.checkpoint import write_checkpoint
from synthetic.directory import write_directory
from synthetic.gguf_file import write_gguf
from synthetic.shape import PRESETS, Shape
from synthetic.weights import PlantedWeights

from hybrid.stages.compare import compare
from hybrid.stages.compare_contenders import Settings
from hybrid.stages.shipped import HELDOUT_TEXT

BUILT = Path("~/.cache/peers/venv-native/bin/python").expanduser()
PEER = os.environ.get("PEER_PYTHON", str(BUILT) if BUILT.exists() else sys.executable)


@pytest.mark.slow
@pytest.mark.skipif(
    subprocess.run([PEER, "-c", "import llama_cpp"], capture_output=True).returncode != 0,
    reason="llama-cpp-python is not installed; PEER_PYTHON names an interpreter that has it",
)
def test_three_programs_on_one_model(tmp_path: Path) -> None:
    """With SiLU, which llama.cpp computes in a Llama whatever the file says."""
    weights = PlantedWeights(Shape(**{**PRESETS["tiny"], "activation": "silu"}))
    write_directory(tmp_path / "model", weights, "f16", lambda stage, done, total: None)
    write_checkpoint(tmp_path / "checkpoint", weights)
    write_gguf(tmp_path / "model.gguf", weights, "f16")
    settings = Settings(
        vram=2 << 20,
        device="cpu",
        rounds=1,
        prompts=1,
        prompt_tokens=16,
        tokens=4,
        text_tokens=400,
        context=256,
        threads=2,
        checkpoint=tmp_path / "checkpoint",
        gguf=tmp_path / "model.gguf",
        python=PEER,
    )
    result = compare(tmp_path / "model", [HELDOUT_TEXT], settings)
    rows = {row.name: row for row in result.rows if row.reason is None}
    names = {"everything-on-cpu", "transformers, on the CPU alone", "llama.cpp, on the CPU alone", "predicted, planned"}
    assert names < set(rows)
    assert not [note for note in result.notes if "other bits" in note]
    for name in names - {"predicted, planned"}:
        assert rows[name].over_dense == pytest.approx(1, abs=2e-3), name
        assert rows[name].agreement is not None and rows[name].agreement > 0.97
        assert rows[name].tokens_per_second and rows[name].ram
