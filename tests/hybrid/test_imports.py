"""What commands must not load: torch takes seconds, and most of `--help` is somebody waiting."""

import shutil
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "statement",
    [
        "import hybrid.cli",
        "import hybrid.runtime.this_machine, profiler.timing, profiler.drive",
        "import hybrid.stages.inspect",
        "import hybrid.stages.plan, hybrid.stages.automatic, hybrid.stages.advice",
        "import hybrid.stages.doctor, hybrid.runtime.nvidia_driver",
        "import hybrid.stages.simulate",
        "import hybrid.stages.report, hybrid.stages.report_sections, hybrid.stages.report_quality",
        "import placement.planner, profiler.profile",
    ],
)
def test_no_torch(statement):
    code = f"{statement}\nimport sys\nassert 'torch' not in sys.modules, 'torch was loaded'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("model", ["demo", "a directory"])
@pytest.mark.parametrize(
    "command",
    [
        ["plan", "--vram", "7MiB", "--hardware", "cpu-stand-in"],
        ["simulate", "--vram", "7MiB", "--hardware", "cpu-stand-in", "--baselines"],
        ["inspect"],
    ],
)
def test_commands_that_need_no_torch_run_without_it(demo, tmp_path, monkeypatch, command, model):
    copy = shutil.copytree(demo, tmp_path / demo.name)
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path))
    name, *options = command
    where = "demo" if model == "demo" else str(copy)
    run = [sys.executable, "-X", "importtime", "-m", "hybrid.cli", name, where, *options]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "predicted" in done.stdout or "not verified" in done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "profiler.predictor_header" in loaded, "what was imported is told"
    assert not {module for module in loaded if module.partition(".")[0] in ("torch", "transformers")}
