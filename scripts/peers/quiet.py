"""Measurements beside which nothing else ran: what other processes took is counted, and disturbed ones are repeated."""

from __future__ import annotations

import time
from typing import Any

import psutil

from hybrid.stages.peers.protocol import Worker

TOLERATED = 0.05  # of the time measured, in processor seconds of others
GRAIN = 0.03  # seconds: clocks of processes tick in hundredths
PATIENCE = 20.0  # seconds after which a measurement is not begun anew


def ask_undisturbed(worker: Worker, command: str, **arguments: Any) -> dict[str, Any]:
    """The worker's answer, asked anew for a while if others take processor time from it; the least disturbed one.

    `disturbance` in the answer: processor seconds of others, and those that a hypervisor took, per second measured.
    """
    answers: list[dict[str, Any]] = []
    until = time.monotonic() + PATIENCE
    while not answers or (answers[-1]["disturbance"] > TOLERATED and time.monotonic() < until):
        if answers:
            wait_until_quiet(until)
        began, others = time.perf_counter(), _others(worker)
        answer = worker.ask(command, **arguments)
        taken, elapsed = _others(worker) - others, time.perf_counter() - began
        answers.append({**answer, "disturbance": max(0.0, taken - GRAIN) / elapsed})
    return min(answers, key=lambda answer: float(answer["disturbance"]))


def wait_until_quiet(until: float) -> None:
    """Return when the processor has idled for a moment, at the latest at `until` on the monotonic clock."""
    while time.monotonic() < until and psutil.cpu_percent(0.2) > 100 * TOLERATED:
        pass


def _others(worker: Worker) -> float:
    """Processor seconds so far of all but the worker."""
    times, own = psutil.cpu_times(), psutil.Process(worker.pid).cpu_times()
    busy = sum(times) - times.idle - getattr(times, "iowait", 0.0)
    # What guests run is counted in `user` as well.
    return float(busy - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0) - own.user - own.system)
