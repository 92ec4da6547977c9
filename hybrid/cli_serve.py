"""`hybrid serve` on the command line."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hybrid import display
from hybrid.cli_groups import with_groups
from hybrid.cli_opening import Opening
from hybrid.cli_options import ModelArgument
from hybrid.exits import loading
from hybrid.extras import install_command
from profiler.artifacts import UserError, format_size, parse_size

if TYPE_CHECKING:
    from hybrid.runtime.engine import Engine

LIBRARIES = ("fastapi", "h11", "llguidance", "prometheus_client", "pydantic", "uvicorn")


@with_groups
def serve(
    model: ModelArgument,
    *,
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 is every one of this machine's.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes one that is free.")] = 8000,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="What clients call the model; may be given several times. By default the directory's name.",
        ),
    ] = None,
    slots: Annotated[int, typer.Option(min=1, max=256, help="Requests that are computed at once.")] = 8,
    queue: Annotated[int, typer.Option(min=0, help="Requests that may wait for a slot; more are answered 429.")] = 64,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            help="Clients have to show one of these keys; may be given several times. Others who use this machine see "
            "a command's options: a file, or HYBRID_API_KEYS (with commas between keys), keeps them to yourself.",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file with API keys, one on each line.")
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="Pages of this origin may call, beside those of this machine; may be given several times, * is all.",
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A name that clients may call the server by, beside localhost; for proxies that pass on their own.",
        ),
    ] = None,
    opening: Opening,
    kv_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory for keys and values of all slots; by default enough for every slot's whole context. Where it "
            "runs out, the youngest requests wait and are read again.",
        ),
    ] = None,
    pace: Annotated[
        float,
        typer.Option(
            min=1.0, help="While others get tokens, a step with part of a prompt takes so many times as long."
        ),
    ] = 2.0,
    keep_alive: Annotated[
        float, typer.Option("--keep-alive-seconds", min=0.1, help="Silence in a stream before a comment is sent.")
    ] = 15.0,
    drain: Annotated[
        float, typer.Option("--drain-seconds", min=0.0, help="Time for what runs to end, once told to stop.")
    ] = 30.0,
) -> None:
    """Serve a model to programs that speak OpenAI's protocol.

    Point a client at http://127.0.0.1:8000/v1 with any API key. Ctrl-C finishes what runs, a second one ends at once.

    Example: hybrid serve demo --port 8000

    Example: curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json'
    -d '{"model": "demo", "prompt": "def parse_args("}'
    """
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"serving needs {', '.join(missing)}: {install_command('serve')}")
    with loading():
        from hybrid.serving.app import create_app
        from hybrid.serving.run import address_of, bind
        from hybrid.serving.run import serve as run_server
        from hybrid.serving.security import exposed, read_keys
        from hybrid.serving.service import EngineService
        from hybrid.serving.settings import ServeSettings
        from hybrid.stages.opening import open_engine

    settings = ServeSettings(
        model_names=tuple(served_model_name or [Path(model).resolve().name]),
        host=host,
        port=port,
        api_keys=read_keys(api_key or (), api_key_file, os.environ),
        cors_origins=tuple(origin.rstrip("/").lower() for origin in cors_origin or ()),
        allowed_hosts=tuple(name.lower() for name in allowed_host or ()),
        queue=queue,
        keep_alive_seconds=keep_alive,
        drain_seconds=drain,
    )
    with contextlib.ExitStack() as stack:
        bound = stack.enter_context(bind(settings))
        display.note(f"opening {model}")
        made = opening.open(
            open_engine,
            model,
            max_sequences=slots,
            kv_memory=None if kv_memory is None else parse_size(kv_memory),
            pace=pace,
            automatic=True,
            tally=True,
        )
        engine = stack.enter_context(made)
        service = EngineService(engine, queue)
        stack.callback(service.close)
        app = create_app(service, settings)
        served = app.state.served
        if served.chat.note is not None:
            display.note(f"warning: {served.chat.note}")
        if recommended := ", ".join(f"{name} {value:g}" for name, value in served.recommended.items()):
            display.note(f"where requests do not say it, as the model's makers recommend: {recommended}")
        if (warning := exposed(settings)) is not None:
            display.note(f"warning: {warning}")
        display.note(f"{address_of(bound)}/v1 serves {settings.model_name}: {opened_line(engine)}")
        run_server(app, service, settings, bound)


def opened_line(engine: Engine) -> str:
    """Mode, slots, context and the memory of keys and values."""
    load = engine.load()
    return (
        f"{engine.options.mode} mode, {load.slots} slots of {engine.context:,} tokens, "
        f"{format_size(load.pages_total * load.page_bytes)} for keys and values"
    )
