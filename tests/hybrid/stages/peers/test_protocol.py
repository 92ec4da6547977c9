"""Contenders' processes: answers, failures, and that none is left, however a comparison ends."""

import os
import sys

import psutil
import pytest

from hybrid.stages.peers.protocol import Worker, WorkerError

SLEEPER = """
import os, time
from hybrid.stages.peers.protocol import serve
def say(text): print("noise of a library"); return {"text": text, "path": os.environ.get("MARK")}
def fail(): raise ValueError("no such thing")
def sleep(): time.sleep(600)
def end(): print("the last words"); os._exit(3)
if __name__ == "__main__":
    serve({"say": say, "fail": fail, "sleep": sleep, "end": end})
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sleeper_worker.py").write_text(SLEEPER)
    return tmp_path


def test_answers_come_back_and_noise_does_not(folder, capfd):
    with Worker("sleeper_worker", environment={"MARK": "here"}, folders=[folder]) as worker:
        assert worker.ask("say", text="ä\n") == {"text": "ä\n", "path": "here"}
        with pytest.raises(WorkerError, match="sleeper_worker, fail: ValueError: no such thing") as caught:
            worker.ask("fail")
        assert caught.value.reason == "no such thing"
        assert worker.ask("say", text="")["text"] == "", "it goes on after a failure"
    assert capfd.readouterr() == ("", "")
    assert not psutil.pid_exists(worker.pid)


def test_one_that_ends_is_told_with_its_last_words(folder):
    with Worker("sleeper_worker", folders=[folder]) as worker:
        with pytest.raises(WorkerError, match="ended with status 3 instead of answering end: the last words"):
            worker.ask("end")
        with pytest.raises(WorkerError, match="status 3"):
            worker.ask("say", text="x")


def test_an_error_ends_one_that_is_busy(folder):
    with pytest.raises(KeyboardInterrupt), Worker("sleeper_worker", folders=[folder]) as worker:
        worker.ask("say", text="awake")
        os.write(worker._process.stdin.fileno(), b'{"command": "sleep"}\n')
        raise KeyboardInterrupt
    assert not psutil.pid_exists(worker.pid)


def test_an_interpreter_keeps_its_own_packages(folder, monkeypatch):
    """Folders of this project come after what an interpreter has itself, and its working directory not at all."""
    (folder / "json.py").write_text("raise ImportError('not this one')")
    monkeypatch.chdir(folder)
    with Worker("sleeper_worker", sys.executable, folders=[folder]) as worker:
        assert worker.ask("say", text="x")["text"] == "x"


def test_no_such_interpreter(tmp_path):
    with pytest.raises(OSError, match="none"):
        Worker("sleeper_worker", str(tmp_path / "none"))
