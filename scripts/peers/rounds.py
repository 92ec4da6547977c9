"""One weight format measured: llama.cpp in its best settings and the engine's modes, in turn, for several rounds."""

from __future__ import annotations

import contextlib
import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hybrid.stages.peers.protocol import Worker
from peers.floor import Bandwidth
from peers.models import Pair
from peers.quiet import TOLERATED, ask_undisturbed

FIRST_ID = 300  # prompts are consecutive tokens from here on, after the opening one
TUNING_TOKENS = 16


@dataclass(frozen=True)
class Options:
    """What is measured. Decoding starts after `prompt` tokens; `prefill` is the length of the prompt that is timed."""

    modes: Sequence[str]
    rounds: int
    threads: int
    tokens: int
    prompt: int
    prefill: int
    peer_python: str
    isa: str | None

    @property
    def context(self) -> int:
        """Tokens that both contenders have room for."""
        return -(-max(self.prompt + self.tokens + 2, self.prefill + 2) // 256) * 256

    @property
    def mean_context(self) -> float:
        """Positions that a decoded token attends to, on average."""
        return self.prompt + (self.tokens + 1) / 2


@dataclass
class Contender:
    """Figures of one contender, a value per round, in tokens per second; `about`: what it said of itself.

    disturbance: processor seconds that others took, per second measured. bandwidth: bytes per second that memory gave
    just before and after decoding, the faster. active, read: shares of the rows. operators, interpreter_share: shares
    of a decode step's time, by kind of operator and outside native code; the peer does not tell them.
    """

    about: dict[str, Any]
    decode: list[float] = field(default_factory=list)
    prefill: list[float] = field(default_factory=list)
    disturbance: list[float] = field(default_factory=list)
    bandwidth: list[float] = field(default_factory=list)
    operators: list[dict[str, float]] = field(default_factory=list)
    interpreter_share: list[float] = field(default_factory=list)
    active: float | None = None
    read: float | None = None
    distinct_tokens: int = 0

    def add(self, worker: Worker, prefiller: Worker, bandwidth: Bandwidth, options: Options) -> None:
        """Decode and prefill once more."""
        before = bandwidth.measure(1)
        decoded = ask_undisturbed(worker, "decode", prompt=ids(options.prompt), tokens=options.tokens)
        self.bandwidth.append(max(before, bandwidth.measure(1)))
        prefilled = ask_undisturbed(prefiller, "prefill", prompt=ids(options.prefill))
        self.decode.append(options.tokens / sum(decoded["seconds"]))
        self.prefill.append(options.prefill / prefilled["seconds"])
        self.disturbance.append(max(decoded["disturbance"], prefilled["disturbance"]))
        if "operators" in decoded:
            self.operators.append(decoded["operators"])
            self.interpreter_share.append(decoded["interpreter_share"])
        self.active, self.read = decoded.get("active"), decoded.get("read")
        self.distinct_tokens = len(set(decoded["ids"]))


def ids(count: int) -> list[int]:
    """A prompt of so many tokens."""
    return [1, *range(FIRST_ID, FIRST_ID + count - 1)]


def measure(
    pair: Pair, options: Options, bandwidth: Bandwidth, tell: Callable[[str], None]
) -> tuple[Contender, dict[str, Contender]]:
    """The peer's figures, and the engine's by mode. The bandwidth of memory is measured around each."""
    with contextlib.ExitStack() as stack:
        decoder, prefiller, peer = _open_peer(stack, pair, options, tell)
        environment = {"HYBRID_ISA": options.isa} if options.isa else {}
        workers, engines = {}, {}
        for mode in options.modes:
            workers[mode] = stack.enter_context(Worker("hybrid.stages.peers.engine_worker", environment=environment))
            about = workers[mode].ask(
                "open", path=str(pair.directory), threads=options.threads, context=options.context, mode=mode
            )
            engines[mode] = Contender(about)
            workers[mode].ask("decode", prompt=ids(options.prompt), tokens=2)  # touches the weights once
            workers[mode].ask("prefill", prompt=ids(options.prefill))
        for turn in range(options.rounds):
            peer.add(decoder, prefiller, bandwidth, options)
            shown = [f"llama.cpp {peer.decode[-1]:.1f}"]
            worst = peer.disturbance[-1]
            for mode, worker in workers.items():
                engines[mode].add(worker, worker, bandwidth, options)
                shown.append(f"{mode} {engines[mode].decode[-1]:.1f}")
                worst = max(worst, engines[mode].disturbance[-1])
            warning = f" (others took {worst:.0%} of a processor)" if worst > TOLERATED else ""
            tell(f"round {turn + 1} of {options.rounds}, tokens/s: {', '.join(shown)}{warning}")
    return peer, engines


def _open_peer(
    stack: contextlib.ExitStack, pair: Pair, options: Options, tell: Callable[[str], None]
) -> tuple[Worker, Worker, Contender]:
    """llama.cpp with the settings in which it decodes fastest, and those in which it reads a prompt fastest."""
    opened: list[tuple[Worker, dict[str, Any], float, float]] = []
    for flash, mmap in itertools.product((False, True), (True, False)):
        flags = {"flash_attention": flash, "mmap": mmap, "batch": 512}
        worker = stack.enter_context(Worker("hybrid.stages.peers.llama_worker", options.peer_python))
        about = worker.ask("open", path=str(pair.gguf), threads=options.threads, context=options.context, **flags)
        worker.ask("decode", prompt=ids(options.prompt), tokens=2)
        decoded = ask_undisturbed(worker, "decode", prompt=ids(options.prompt), tokens=TUNING_TOKENS)
        prefills = [ask_undisturbed(worker, "prefill", prompt=ids(options.prefill))["seconds"] for _ in range(2)]
        opened.append((worker, {**about, **flags}, statistics.median(decoded["seconds"]), min(prefills)))
        tell(
            f"llama.cpp, flash attention {'on' if flash else 'off'}, mmap {'on' if mmap else 'off'}: "
            f"{1 / opened[-1][2]:.1f} tokens/s, prefill {options.prefill / opened[-1][3]:.0f}"
        )
    decoder = min(opened, key=lambda o: o[2])
    prefiller = min(opened, key=lambda o: o[3])
    for worker, *_ in opened:
        if worker not in (decoder[0], prefiller[0]):
            worker.ask("close")
    about = {"version": decoder[1]["version"], "system": decoder[1]["system"], "bytes": decoder[1]["bytes"]}
    for purpose, chosen in (("decode", decoder), ("prefill", prefiller)):
        about[f"{purpose}_flags"] = {k: chosen[1][k] for k in ("flash_attention", "mmap", "batch")}
    return decoder[0], prefiller[0], Contender(about)
