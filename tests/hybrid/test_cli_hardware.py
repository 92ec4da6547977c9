"""`hybrid hardware` as a user types it."""

import json
import signal
import subprocess
import sys

import pytest

from hybrid import cli
from hybrid.cli_hardware import reading_lines
from hybrid.runtime.this_machine import this_machine
from hybrid.stages import hardware, hardware_machine
from profiler.hardware import read_hardware, shipped_hardware
from profiler.speeds import Reading


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """`run(*arguments) -> (exit code, stdout, stderr)`, in this process, with a cache of its own and in no time."""
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hardware, "QUICK", 0.0)
    monkeypatch.setattr(hardware, "LEAST_SCRATCH", 1 << 20)
    monkeypatch.setattr(hardware_machine, "last_level_cache", lambda: 1 << 10)

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["hybrid", "hardware", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        shown = capsys.readouterr()
        return ended.value.code or 0, shown.out, shown.err

    return command


def test_the_list_says_that_its_figures_are_predicted(run) -> None:
    code, out, _ = run("--list")
    assert code == 0
    assert "predicted" in out.splitlines()[0] and "None of these was measured here" in out
    assert all(f"| {name} " in out and f"\n{name}: " in out for name in shipped_hardware())
    _, out, _ = run("--list", "--json")
    assert [machine["name"] for machine in json.loads(out)["machines"]] == list(shipped_hardware())


def test_this_machine_is_measured_shown_and_kept(run, tmp_path) -> None:
    code, out, _ = run("--quick", "--second-device", "cpu", "--formats", "f16, q4_0", "--no-flash")
    assert code == 0
    for word in (
        "cpu f16 dense",
        "gpu q4_0 rows",
        "beside the other",
        "hand-over",
        "contention",
        "no figures of a drive",
    ):
        assert word in out
    assert str(tmp_path / "cache" / "hardware") in out
    assert set(this_machine("cpu").cpu.speeds) == {"f16", "q4_0"}


def test_a_file_of_ones_own_and_json(run, tmp_path) -> None:
    file = tmp_path / "mine" / "machine.json"
    options = ("--quick", "--second-device", "cpu", "--formats", "q4_0", "--directory", tmp_path, "--json", "-o", file)
    code, out, _ = run(*options)
    assert code == 0
    shown = json.loads(out)
    assert shown["path"] == str(file)
    assert shown["hardware"]["name"] == read_hardware(file).name
    assert len(shown["hardware"]["flash"]) == len(read_hardware(file).flash) > 10
    assert this_machine("cpu") is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--formats", "f16,q5_k"), "'q5_k' is not a format of weights; formats are bf16, f16, q8_0, q4_0"),
        (("--directory", "/nowhere"), "/nowhere is not a folder"),
        (("--directory", "/", "--no-flash"), "give one of them"),
        (("--output", "/proc/machine.json"), "cannot write machine.json"),
    ],
)
def test_mistakes_are_explained(run, arguments, message) -> None:
    code, out, err = run("--quick", "--second-device", "cpu", *arguments)
    assert (code, out) == (1, "")
    assert err.startswith("hybrid: ") and message in err and "Traceback" not in err


def test_an_interrupt_ends_quietly_and_leaves_nothing(tmp_path) -> None:
    code = (
        "import sys; from hybrid.cli import main; from hybrid.stages import hardware; real = hardware.measure_drive\n"
        "hardware.measure_drive = lambda *args, **named: print('begun', flush=True) or real(*args, **named)\n"
        "sys.argv = ['hybrid', *sys.argv[1:]]; main()"
    )
    arguments = ["hardware", "--second-device", "cpu", "--output", tmp_path / "m.json", "--directory", tmp_path]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_a_machine_with_a_gpu_has_a_column_for_it() -> None:
    gpu = [Reading("gpu", "f16", "rows", 0, beside, 2e11, 0.1) for beside in (False, True)]
    cpu = [Reading("cpu", "f16", "rows", count, False, count * 1e10) for count in (1, 8)]
    assert reading_lines((*cpu, *gpu)) == [
        "|              | GPU | 1 thread | 8 threads | beside the other | spread |",
        "|--------------|----:|---------:|----------:|-----------------:|-------:|",
        "| cpu f16 rows |     |     10.0 |      80.0 |                  |     0% |",
        "| gpu f16 rows | 200 |          |           |        200 (GPU) |    10% |",
    ]
