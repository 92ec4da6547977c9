"""Commands that are not alone: two in one directory, directories of somebody else, servers that are told to stop."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx

from knocks.bases import Bases
from knocks.campaign import Result
from knocks.jobs import EVALUATE, GENERATE, PACK, PLAN, PROFILED
from knocks.points import SIGNALS, ended, place, result
from knocks.pool import in_child, kill_session, run_commands

NOBODY = 65534
PAIRS = ((PACK, PACK), (PROFILED, PROFILED), (PROFILED, PLAN), (PLAN, PLAN), (PROFILED, GENERATE), (EVALUATE, PROFILED))
ALLOWED_AFTER = 20.0  # seconds in which processes of a server's have to be gone


def together(bases: Bases, scratch: Path) -> Iterator[Result]:
    """Two commands in one directory, the second some time after the first: both end, and the directory works."""
    number = 0
    for first, second in PAIRS:
        for wait in (0.0, 0.02, 0.1, 0.3, 0.6):
            number += 1
            with place(scratch) as (folder, log):
                (PLAN if first is not PACK else PACK).begin(bases, folder)
                outputs = [(log / f"out{i}", log / f"err{i}") for i in range(2)]
                children = [in_child(first.work(bases, folder), *outputs[0], None)]
                time.sleep(wait)
                children.append(in_child(second.work(bases, folder), *outputs[1], None))
                statuses = [ended(child) for child in children]
                codes = [None if s is None else os.waitstatus_to_exitcode(s) for s in statuses]
                problems = PROFILED.problems(bases, folder, log / "after") if first is not PACK else []
                if 0 not in codes:
                    problems.append(f"neither ended well: {codes}")
                (log / "stderr").write_text("".join(err.read_text() for _, err in outputs))
                worst = (
                    max(statuses, key=lambda status: -1 if status is None else status) if None not in statuses else None
                )
                name = f"two at once: {first.name}, {second.name}"
                yield result(name, number, worst, log, problems, (), f"after {wait} s")


def unwritable(bases: Bases, scratch: Path) -> Iterator[Result]:
    """Folders that may be read only, and files that may not be read, as an ordinary user meets them."""
    number = 0
    for job in (PACK, PROFILED, PLAN, EVALUATE, GENERATE):
        for how in ("another's", "read-only", "unreadable"):
            number += 1
            with place(scratch) as (folder, log):
                job.begin(bases, folder)
                _give(folder, how)
                work = partial(_as_nobody, job.work(bases, folder))
                log.chmod(0o777)
                status = ended(in_child(work, log / "stdout", log / "stderr", None))
                left = [str(path) for path in folder.rglob("*") if ".partial-" in path.name]
                yield result(f"{how} folder: {job.name}", number, status, log, left, (), how)


def _give(folder: Path, how: str) -> None:
    for path in (folder, *folder.rglob("*")):
        if how != "another's" and os.geteuid() == 0:
            os.chown(path, NOBODY, NOBODY)
        if path.is_dir():
            path.chmod(0o555)
        elif how == "unreadable" and path.suffix in (".safetensors", ".json"):
            path.chmod(0o000)
        else:
            path.chmod(0o444)


def _as_nobody(work: Callable[[], None]) -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    os.environ["HYBRID_CACHE"] = "/nowhere/that/is"
    work()


def servers(bases: Bases, scratch: Path) -> Iterator[Result]:
    """Signals to a server: idle, while it answers, and twice. Its processes end, and the directory works."""
    number = 0
    for sent in SIGNALS:
        for how in ("idle", "busy", "twice"):
            number += 1
            with place(scratch) as (folder, log):
                GENERATE.begin(bases, folder)
                line = ["serve", str(folder / "model"), "--port", "0", "--threads", "1", "--drain-seconds", "2"]
                child = in_child(partial(run_commands, [line]), log / "stdout", log / "stderr", None)
                status = _told(child, sent, how, log)
                problems = _outlived(child)
                problems += GENERATE.problems(bases, folder, log / "after")
                allowed = (-sent, 128 + sent)
                yield result("signal: serve", number, status, log, problems, allowed, f"{sent.name} {how}")


def _told(child: int, sent: signal.Signals, how: str, log: Path) -> int | None:
    url = _url(log / "stderr")
    stop = threading.Event()
    asking = [threading.Thread(target=_ask, args=(url, stop)) for _ in range(0 if how == "idle" else 3)]
    for thread in asking:
        thread.start()
    time.sleep(0.1 if how == "idle" else 0.3)
    for _ in range(2 if how == "twice" else 1):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, sent)
        time.sleep(0.1)
    if sent == signal.SIGPIPE:  # a server does not end for a client that went
        httpx.get(f"{url}/health", timeout=60).raise_for_status()
        os.kill(child, signal.SIGTERM)
    status = ended(child, keep=True)
    stop.set()
    for thread in asking:
        thread.join()
    return status


def _url(said: Path) -> str:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if said.exists() and (found := re.search(r"(http://\S+)/v1 serves", said.read_text())):
            return found[1]
        time.sleep(0.02)
    raise AssertionError(f"it does not serve: {said.read_text()}")


def _ask(url: str, stop: threading.Event) -> None:
    body = {"model": "model", "prompt": "def f(", "max_tokens": 100, "ignore_eos": True, "stream": True}
    with httpx.Client(timeout=60) as client:
        while not stop.is_set():
            with contextlib.suppress(httpx.HTTPError):
                client.post(f"{url}/v1/completions", json=body)


def _outlived(leader: int) -> list[str]:
    until = time.monotonic() + ALLOWED_AFTER
    while time.monotonic() < until:
        try:
            os.killpg(leader, 0)
        except ProcessLookupError:
            return []
        time.sleep(0.05)
    kill_session(leader)
    return ["processes outlived it"]
