"""What commands must not load: torch takes seconds, and most of `--help` is somebody waiting."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "statement",
    [
        "import hybrid.cli",
        "import hybrid.runtime.this_machine, profiler.timing, profiler.drive",
        "import hybrid.stages.inspect",
        "import hybrid.stages.report, hybrid.stages.report_sections, hybrid.stages.report_quality",
        "import placement.planner, profiler.profile",
    ],
)
def test_no_torch(statement):
    code = f"{statement}\nimport sys\nassert 'torch' not in sys.modules, 'torch was loaded'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
