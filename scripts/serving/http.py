"""The same requests through `LLM.generate`, over HTTP to this server, and over HTTP to llama_cpp.server, in turn."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from serving.client import Load, run_load
from serving.library import Settings, generate, opened
from serving.prompts import Prompts
from serving.servers import hybrid_server, llama_server

Bodies = Callable[[], dict[str, Any]]


def over_http(
    path: Path,
    mode: str,
    gguf: Path | None,
    peer_python: str,
    clients: Sequence[int],
    settings: Settings,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """By number of clients: `library`, `http` and, with a GGUF file, `peer`: for each round generated tokens, seconds,
    and the mean of the seconds until first tokens.
    """
    slots, found = max(clients), dict[str, dict[str, list[dict[str, float]]]]()
    with contextlib.ExitStack() as stack:
        llm = stack.enter_context(opened(path, mode, slots, settings))
        prompts = Prompts(llm.tokenizer, llm.tokenizer.vocab_size)
        ours = stack.enter_context(hybrid_server(path, mode, slots, settings.context, settings.threads))
        ways: dict[str, tuple[int, Bodies]] = {"http": (ours, lambda: hybrid_body(prompts, settings))}
        if gguf is not None:
            peer = stack.enter_context(llama_server(peer_python, gguf, settings.context, settings.threads))
            ways["peer"] = peer, lambda: peer_body(prompts, settings)
        generate(llm, [prompts.text(settings.prompt)], settings)  # touches the weights once
        for port, body in ways.values():
            run_load(port, [body()])
        for turn in range(settings.rounds):
            for count in clients:
                of = found.setdefault(str(count), {name: [] for name in ("library", *ways)})
                seconds = generate(llm, [prompts.text(settings.prompt) for _ in range(count)], settings)
                of["library"].append({"tokens": count * settings.tokens, "seconds": seconds})
                for name, (port, body) in ways.items():
                    of[name].append(told(run_load(port, [body() for _ in range(count)])))
                rates = ", ".join(f"{name} {r[-1]['tokens'] / r[-1]['seconds']:.1f}" for name, r in of.items())
                tell(f"{path.name}, {count} clients, round {turn + 1} of {settings.rounds}, tokens/s: {rates}")
    return found


def hybrid_body(prompts: Prompts, settings: Settings) -> dict[str, Any]:
    """A request to this server."""
    return {
        "model": "model",
        "prompt": prompts.text(settings.prompt),
        "max_tokens": settings.tokens,
        "temperature": 0,
        "ignore_eos": True,
    }


def peer_body(prompts: Prompts, settings: Settings) -> dict[str, Any]:
    """The same to llama_cpp.server: it adds an opening token, and a space, which its vocabulary has as three bytes."""
    return {
        "model": "model",
        "prompt": prompts.letters(max(1, settings.prompt - 4)),
        "max_tokens": settings.tokens,
        "temperature": 0,
        "top_k": 1,
    }


def told(load: Load) -> dict[str, float]:
    """A load's figures."""
    firsts = [answer.first for answer in load.answers]
    prompts = [answer.prompt_tokens for answer in load.answers if answer.prompt_tokens is not None]
    found = {"tokens": load.tokens, "seconds": load.seconds, "first_seconds": sum(firsts) / len(firsts)}
    return {**found, "prompt_tokens": sum(prompts) / len(prompts)} if prompts else found
