"""The commands and flags of `ssd-cloud`.

Commands import what they need when they run, so that `--help` is quick and works without torch.
"""

from __future__ import annotations

import importlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from ssd_diffusion.terminal import printable

from ssd_cloud import __version__, config
from ssd_cloud.cli.data import data_app
from ssd_cloud.errors import UsageError

_LATE = {
    "adapt": "ssd_cloud.cli.adapt",
    "instruct": "ssd_cloud.cli.instruct",
    "expert-base": "ssd_cloud.cli.expert_base",
    "own-text": "ssd_cloud.cli.own_text",
}
_LATE_HELP = {
    "adapt": "Turn a pretrained decoder into a diffusion core.",
    "instruct": "Finetune a diffusion core on instructions.",
    "expert-base": "Put an expert's base into a core's vocabulary.",
    "own-text": "Let a model write text to learn drafts from.",
}

app = typer.Typer(
    name="ssd-cloud", help="The node: serves a core model for diffusion experts on people's own machines.",
    no_args_is_help=True, pretty_exceptions_enable=False, add_completion=True,
)  # fmt: skip
token_app = typer.Typer(help="Make, list and revoke the tokens that callers need.", no_args_is_help=True)
app.add_typer(token_app, name="token")
app.add_typer(data_app, name="data")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.", envvar="SSD_JSON")]


def _version(wanted: bool) -> None:
    if wanted:
        Console().print(f"ssd-cloud {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def serve(
    model: Annotated[
        str, typer.Option(help="A model folder, a name that `models` lists, or 'packaged'.", envvar="SSD_MODEL")
    ] = "packaged",
    listen: Annotated[
        str, typer.Option(help="HOST:PORT; port 0 takes a free one.", envvar="SSD_LISTEN")
    ] = "127.0.0.1:7337",
    token: Annotated[
        str | None, typer.Option(help="Accept this token only, for this start (not stored).", envvar="SSD_TOKEN")
    ] = None,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Ask for no token (this machine only).", envvar="SSD_NO_TOKEN")
    ] = False,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.", envvar="SSD_TLS_CERT")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Private key, PEM.", envvar="SSD_TLS_KEY")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow other machines without TLS.", envvar="SSD_INSECURE")
    ] = False,
    max_sessions: Annotated[
        int, typer.Option(min=1, max=4096, help="Most sessions at once.", envvar="SSD_MAX_SESSIONS")
    ] = 8,
    cache_bytes: Annotated[
        str, typer.Option(help="Most memory for the sessions' caches, such as 4GiB.", envvar="SSD_CACHE_BYTES")
    ] = "4GiB",
    batch_width: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=4096,
            envvar="SSD_BATCH_WIDTH",
            help="Most sessions computed together (default: 8; on a CPU without onnxruntime's graph 1).",
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=4096, help="CPU threads of the model (default: all).", envvar="SSD_THREADS")
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            envvar="SSD_ENGINE",
            help="torch, onnx or auto: torch on a GPU, onnxruntime on a CPU, whose graph the first start writes.",
        ),
    ] = "auto",
    idle_timeout: Annotated[
        float,
        typer.Option(min=0.1, help="Seconds after which an unused session is released.", envvar="SSD_IDLE_TIMEOUT"),
    ] = 120.0,
    drain_s: Annotated[
        float, typer.Option(min=0.0, help="Seconds that answers may go on after SIGTERM.", envvar="SSD_DRAIN_S")
    ] = 10.0,
    reflection: Annotated[
        bool, typer.Option(help="Answer gRPC reflection to callers with a token.", envvar="SSD_REFLECTION")
    ] = True,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log lines as JSON.", envvar="SSD_LOG_JSON")] = False,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.", envvar="SSD_LOG_LEVEL")] = "warning",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON line when ready, and nothing else.", envvar="SSD_JSON")
    ] = False,
) -> None:
    """Serve a model until SIGTERM or Ctrl-C."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    if log_level not in ("debug", "info", "warning", "error"):
        raise UsageError(f"{log_level!r} is no log level; use debug, info, warning or error")
    from ssd_cloud import logs
    from ssd_cloud.cli.serve import Asked
    from ssd_cloud.cli.serve import serve as serve_node
    from ssd_cloud.models import RUNTIMES
    from ssd_cloud.plan import parse_bytes
    from ssd_cloud.server import Address, Settings

    if engine not in RUNTIMES:
        raise UsageError(f"{engine!r} is no engine; use {', '.join(RUNTIMES)}")
    logs.configure(as_json=log_json, level=log_level)
    settings = Settings(
        listen=Address.parse(listen), tls_cert=tls_cert, tls_key=tls_key, max_sessions=max_sessions,
        cache_bytes=parse_bytes(cache_bytes), idle_timeout_s=idle_timeout, drain_s=drain_s,
        reflection=reflection,
    )  # fmt: skip
    asked = Asked(
        model=model,
        token=token,
        no_token=no_token,
        insecure=insecure,
        threads=threads,
        batch_width=batch_width,
        engine=engine,
        as_json=as_json,
    )
    serve_node(asked, settings)


@app.command()
def models(as_json: Json = False) -> None:
    """List the models this machine can serve."""
    from ssd_diffusion.home import home

    from ssd_cloud.models import listed

    found = listed(home())
    if as_json:
        _print_json([asdict(one) for one in found])
        return
    table = Table("name", "family", "V", "B", "context", "model id")
    for one in found:
        state = one.model_id or "(converted at first start)" if not one.ready else one.model_id
        table.add_row(
            _text(one.name), one.family, f"{one.vocab:,}", str(one.max_block), f"{one.max_context:,}", _text(state)
        )
    Console().print(table)


@app.command()
def plan(
    model: Annotated[str, typer.Option(help="A known name such as opt-13b, or a model folder.", envvar="SSD_MODEL")],
    gpu: Annotated[str, typer.Option(help="Memory such as 80GB, or a name such as h100.", envvar="SSD_GPU")] = "80GB",
    context: Annotated[
        int, typer.Option(min=1, help="Tokens a session holds, answer included.", envvar="SSD_CONTEXT")
    ] = 2048,
    block: Annotated[int, typer.Option(min=1, max=4096, help="Open positions B.", envvar="SSD_BLOCK")] = 32,
    dtype: Annotated[str, typer.Option(help="bf16, fp16 or fp32.", envvar="SSD_DTYPE")] = "bf16",
    accepted: Annotated[
        float, typer.Option(min=1.0, help="Tokens accepted in a pass; 1 is the floor.", envvar="SSD_ACCEPTED")
    ] = 1.0,
    as_json: Json = False,
) -> None:
    """How many sessions fit on a GPU, and how fast they can be at best; from shapes alone."""
    from ssd_cloud import plan as planning

    if dtype not in planning.DTYPE_BYTES:
        raise UsageError(f"{dtype!r} is no dtype; use {', '.join(planning.DTYPE_BYTES)}")
    made = planning.make(
        model, planning.find_shape(model), planning.find_gpu(gpu),
        context=context, block=block, dtype=dtype, accepted=accepted,
    )  # fmt: skip
    if as_json:
        _print_json(asdict(made))
    else:
        _show_plan(made)


@token_app.command("new")
def token_new(
    name: Annotated[str, typer.Option(help="What you call it.", envvar="SSD_TOKEN_NAME")] = "",
    as_json: Json = False,
) -> None:
    """Make a token; it is shown once."""
    record, token = _tokens().new(name)
    if as_json:
        _print_json({"id": record.id, "name": record.name, "created": record.created, "token": token})
        return
    Console(soft_wrap=True).print(f"Token {record.id}, shown only now: [bold]{token}[/]")


@token_app.command("list")
def token_list(as_json: Json = False) -> None:
    """List the tokens (never the secrets themselves)."""
    records = _tokens().records()
    if as_json:
        _print_json([{"id": r.id, "name": r.name, "created": r.created} for r in records])
        return
    table = Table("id", "name", "created")
    for record in records:
        table.add_row(record.id, _text(record.name), record.created)
    Console().print(table)


@token_app.command("revoke")
def token_revoke(
    token_id: Annotated[str, typer.Argument(help="Its id in `token list`.")], as_json: Json = False
) -> None:
    """Revoke a token; a running node notices at once."""
    record = _tokens().revoke(token_id)
    if as_json:
        _print_json({"revoked": record.id})
    else:
        Console(soft_wrap=True).print(_text(f"Token {record.id} ({record.name}) is revoked."))


def run(given: list[str]) -> int:
    """Run one command; every error leaves as an exception.

    Args:
        given: the command line without the program's name.

    Returns:
        The exit code.
    """
    _register_late(given)
    command = typer.main.get_command(app)
    settings = config.defaults(_known_keys(command))
    try:
        ended = command.main(args=given, prog_name="ssd-cloud", default_map=settings, standalone_mode=False)
    except SystemExit as pipe:  # typer's own way to say that the reader of our output went away
        return int(bool(pipe.code))
    if ended == 130:  # typer's own way to say Ctrl-C
        raise KeyboardInterrupt
    return ended if isinstance(ended, int) else 0


def whole() -> typer.Typer:
    """The app with the training commands in full."""
    _register_late(list(_LATE))
    return app


def _register_late(given: list[str]) -> None:
    """Add the training commands: in full when one of them runs, else as a name with a line of help."""
    for name, module in _LATE.items():
        present = next((command for command in app.registered_commands if command.name == name), None)
        if present is not None:
            if present.callback is not _placeholder or name not in given:
                continue
            app.registered_commands.remove(present)
        if name in given:
            function: Any = getattr(importlib.import_module(module), name.replace("-", "_"))
        else:
            function = _placeholder
        app.command(name, help=None if name in given else _LATE_HELP[name])(function)


def _placeholder() -> None:
    raise AssertionError("replaced before it runs")


def _known_keys(command: Any) -> dict[str, frozenset[str] | None]:
    """What the configuration file may set, by command; None for a training command that does not run now."""
    known: dict[str, frozenset[str] | None] = {}
    for name, sub in command.commands.items():
        if name in _LATE and sub.callback is not None and sub.help == _LATE_HELP[name]:
            known[name] = None
        elif name not in ("token", "data"):
            known[name] = frozenset(str(p.name) for p in sub.params) - {"as_json"}
    return known


def _tokens() -> Any:
    from ssd_diffusion.home import home

    from ssd_cloud.auth import TokenFile

    return TokenFile.under(home())


def _show_plan(made: Any) -> None:
    gb = 1e9
    console = Console()
    table = Table("what", "value", title=_text(f"{made.model} on {made.gpu}, {made.dtype}"), title_justify="left")
    table.add_row("parameters", f"{made.parameters / 1e9:.2f} B")
    table.add_row("weights", f"{made.weights_bytes / gb:.1f} GB")
    table.add_row("cache a token", f"{made.cache_bytes_a_token / 1e6:.3f} MB")
    table.add_row(f"a session ({made.context:,} tokens, B {made.block})", f"{made.session_bytes / gb:.2f} GB")
    table.add_row("kept free", f"{made.reserve_bytes / gb:.1f} GB")
    table.add_row("sessions that fit", f"[bold]{made.sessions}[/]")
    console.print(table)
    speed = Table(
        "sessions", "ms a pass", "bound by", "passes/s", "tokens/s", title="Speed, at best", title_justify="left"
    )
    for load in made.loads:
        speed.add_row(
            str(load.sessions), f"{load.pass_ms:.1f}", load.bound_by, f"{load.passes_a_second:,.0f}",
            f"{load.tokens_a_second:,.0f}",
        )  # fmt: skip
    if made.loads:
        console.print(speed)
    console.print(
        f"Assumes {made.accepted:g} accepted token(s) a pass, every byte read once a pass and arithmetic at full rate: "
        "floors of time, which real kernels reach in part.", style="dim",
    )  # fmt: skip


def _text(words: str) -> Text:
    """Names from files and flags, shown as they are: neither markup nor anything that a terminal obeys."""
    return Text(printable(words))


def _print_json(value: object) -> None:
    print(json.dumps(value), flush=True)  # noqa: T201 - output for programs
