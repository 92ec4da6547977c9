"""Load on a server that speaks OpenAI's protocol: many clients, mixed lengths, some of whom leave midway.

    python scripts/load_server.py http://127.0.0.1:8000/v1 [--clients 64] [--requests 50] [--leaving 0.33]
        [--api-key KEY] [--model NAME] [--pid PID] [--seed 0] [--json FILE]

Each client sends its requests one after the other: chats and plain completions, as a stream or whole, prompts of 5 to
400 words and answers of 1 to 40 tokens, drawn by the seed. A client that leaves closes its connection after some pieces
of a stream, or some time. One that is told to come later (429) counts as such, and waits as long as it was told, at
most a second. The exit code is 0 where nothing but answers and 429 came. With --pid, of a server on this machine, its
resident memory is read five times while the load lasts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.console import Console

TEXT = "def return self value import for in range list dict the and or not None True path name ( ) : = + [ ]"
PATIENCE = 1800.0  # seconds without a byte
READINGS = 5  # of memory, evenly over the requests


@dataclass(frozen=True)
class Plan:
    """One request: what is sent, and when its client leaves: after so many pieces or seconds, or never (None)."""

    path: str
    body: dict[str, Any]
    leaves: float | None


@dataclass
class Report:
    """What came of a load. Seconds: to the first piece, between pieces of a stream, and to the end of an answer."""

    outcomes: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    pieces: int = 0
    seconds: float = 0.0
    resident: list[int] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether nothing came but answers, requests to come later, and clients that left."""
        return not self.errors and set(self.outcomes) <= {"answered", "left", "later"}


def plan(draw: random.Random, model: str, leaving: float) -> Plan:
    """A request drawn at random."""
    text = " ".join(draw.choices(TEXT.split(), k=int(5 * 80 ** draw.random())))
    chat, stream = draw.random() < 0.5, draw.random() < 0.6
    body: dict[str, Any] = {"model": model, "max_tokens": draw.randint(1, 40), "stream": stream}
    body["temperature"], body["seed"] = draw.choice([0, 0.8]), draw.randrange(1 << 30)
    if chat:
        body["messages"] = [{"role": "user", "content": text}]
    else:
        body["prompt"] = text
    leaves = None
    if draw.random() < leaving:
        leaves = float(draw.randint(0, 10)) if stream else draw.random() * 0.3
    return Plan("/chat/completions" if chat else "/completions", body, leaves)


async def ask(client: httpx.AsyncClient, request: Plan, report: Report) -> None:
    """Send one request, and note what came of it."""
    send = stream_answer if request.body["stream"] else whole_answer
    try:
        outcome = await send(client, request, report)
    except httpx.HTTPError as error:
        outcome = "failed"
        report.errors.append(f"{type(error).__name__}: {error}"[:300])
    report.outcomes[outcome] += 1


async def stream_answer(client: httpx.AsyncClient, request: Plan, report: Report) -> str:
    """Read a stream, as far as its client stays; the outcome."""
    began = last = time.perf_counter()
    pieces, ended = 0, False
    async with client.stream("POST", request.path, json=request.body) as answer:
        if answer.status_code != 200:
            await answer.aread()
            return await refused(answer, report)
        async for line in answer.aiter_lines():
            if request.leaves is not None and pieces >= request.leaves:
                return "left"
            if not line.startswith("data: "):
                continue
            ended = line == "data: [DONE]"
            if "error" in line[:20]:
                report.errors.append(line[:300])
                return "failed"
            now = time.perf_counter()
            (report.between if pieces else report.first).append(now - (last if pieces else began))
            last, pieces = now, pieces + 1
    report.pieces += pieces
    report.whole.append(time.perf_counter() - began)
    if not ended:
        report.errors.append("a stream ended without [DONE]")
        return "failed"
    return "answered"


async def whole_answer(client: httpx.AsyncClient, request: Plan, report: Report) -> str:
    """Wait for a whole answer, as long as its client stays; the outcome."""
    began = time.perf_counter()
    try:
        answer = await asyncio.wait_for(client.post(request.path, json=request.body), request.leaves)
    except asyncio.TimeoutError:
        return "left"
    if answer.status_code != 200:
        return await refused(answer, report)
    usage = answer.json()["usage"]
    report.whole.append(time.perf_counter() - began)
    report.pieces += usage["completion_tokens"]
    return "answered"


async def refused(answer: httpx.Response, report: Report) -> str:
    """What a status other than 200 means."""
    if answer.status_code == 429:
        await asyncio.sleep(min(1.0, float(answer.headers.get("Retry-After", "1"))))
        return "later"
    report.errors.append(f"{answer.status_code}: {answer.text[:300]}")
    return f"status {answer.status_code}"


async def load(
    url: str,
    clients: int = 64,
    requests: int = 50,
    leaving: float = 0.33,
    *,
    api_key: str | None = None,
    model: str | None = None,
    pid: int | None = None,
    seed: int = 0,
) -> Report:
    """Load a server.

    Args:
        url: with the `/v1`.
        clients: at once.
        requests: of each, one after the other.
        leaving: the share of requests whose client leaves midway.
        api_key: that the server asks for.
        model: its name; None takes the first that the server has.
        pid: of the server, whose memory is read.
        seed: of all that is drawn.
    """
    report, process = Report(), None if pid is None else psutil.Process(pid)
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, headers=headers, limits=limits) as client:
        if model is None:
            models = (await client.get("/models")).raise_for_status().json()
            model = str(models["data"][0]["id"])
        done = 0

        async def one(number: int) -> None:
            nonlocal done
            draw = random.Random(f"{seed}/{number}")
            for _ in range(requests):
                await ask(client, plan(draw, str(model), leaving), report)
                done += 1
                if process is not None and done * READINGS % (clients * requests) < READINGS:
                    report.resident.append(int(process.memory_info().rss))

        began = time.perf_counter()
        await asyncio.gather(*map(one, range(clients)))
        report.seconds = time.perf_counter() - began
    return report


def show(report: Report, console: Console) -> None:
    """Print what came of a load."""
    told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(report.outcomes.items()))
    console.print(f"{told} in {report.seconds:.1f} s; {report.pieces / report.seconds:,.0f} tokens/s")
    for name, seconds in (("first token", report.first), ("between tokens", report.between), ("whole", report.whole)):
        if len(seconds) > 1:
            cuts = statistics.quantiles(seconds, n=100)
            console.print(f"{name}: median {cuts[49] * 1000:,.1f} ms, 99 % within {cuts[98] * 1000:,.1f} ms")
    if report.resident:
        sizes = ", ".join(f"{size / 2**20:,.1f}" for size in report.resident)
        console.print(f"resident memory, one after the other: {sizes} MiB")
    for error, count in Counter(report.errors).most_common(10):
        console.print(f"[red]{count} x {error}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, load, print; 0 where all was well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--leaving", type=float, default=0.33)
    parser.add_argument("--api-key")
    parser.add_argument("--model")
    parser.add_argument("--pid", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = vars(parser.parse_args(arguments))
    file, url = options.pop("json"), options.pop("url")
    report = asyncio.run(load(url, **options))
    show(report, Console(highlight=False))
    if file is not None:
        file.write_text(json.dumps(vars(report)))
    return 0 if report.clean else 1


if __name__ == "__main__":
    raise SystemExit(main())
