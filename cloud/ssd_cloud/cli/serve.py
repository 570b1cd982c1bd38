"""`ssd-cloud serve`: checks what was asked, loads the model, says when it is ready, and serves until told to stop."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.text import Text
from ssd_diffusion.engine import Engine
from ssd_diffusion.home import home
from ssd_diffusion.terminal import printable

from ssd_cloud import models
from ssd_cloud.auth import Authenticator, TokenFile
from ssd_cloud.errors import UsageError
from ssd_cloud.server import Address, Node, Settings, preflight, run


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The flags of `serve` that are not `Settings`."""

    model: str
    token: str | None
    no_token: bool
    insecure: bool
    threads: int | None
    batch_width: int | None
    engine: models.Runtime
    as_json: bool


def serve(asked: Asked, settings: Settings) -> None:
    """Run a node until SIGTERM or SIGINT.

    Raises:
        UsageError: flags that make no sense together.
        StartError: the node cannot start.
        InvalidModel: the model cannot be used.
    """
    _check(asked, settings)
    preflight(settings)
    root = home()
    authenticator, shown = _authenticator(asked, root)
    engine = _load(asked, settings, root)
    settings = replace(settings, batch_width=asked.batch_width or models.usual_batch_width(engine))
    asyncio.run(_serve(engine, settings, authenticator, asked, shown))


async def _serve(
    engine: Engine, settings: Settings, authenticator: Authenticator, asked: Asked, shown: str | None
) -> None:
    node = Node(engine, settings, authenticator)
    await run(node, lambda address: _ready(engine, address, asked, settings, shown))


def _check(asked: Asked, settings: Settings) -> None:
    if asked.token is not None and asked.no_token:
        raise UsageError("--token and --no-token contradict each other; give one of them")
    if asked.token is not None and (len(asked.token) < 8 or not asked.token.isascii() or not asked.token.isprintable()):
        raise UsageError("a token needs at least 8 printable ASCII characters")
    if asked.no_token and not settings.listen.loopback:
        raise UsageError("--no-token is for this machine only; listen on 127.0.0.1, or use a token")
    if not settings.listen.loopback and settings.tls_cert is None and not asked.insecure:
        raise UsageError(
            f"on {settings.listen} prompts and tokens would cross the network unencrypted; "
            "give --tls-cert and --tls-key, or --insecure where something else encrypts the link"
        )


def _authenticator(asked: Asked, root: Path) -> tuple[Authenticator, str | None]:
    """Who may call, and the token to show where it is new or was given."""
    if asked.no_token:
        return Authenticator(None, required=False), None
    if asked.token is not None:
        return Authenticator(None, given=asked.token), asked.token
    file = TokenFile.under(root)
    shown = None if file.records() else file.new("first start")[1]
    return Authenticator(file), shown


def _load(asked: Asked, settings: Settings, root: Path) -> Engine:
    console = Console(stderr=True, quiet=asked.as_json)
    with console.status(Text(printable(f"Loading {asked.model} ..."))):
        path = models.resolve(asked.model, root)
        return models.load_quickest(
            path, root, slots=settings.max_sessions, batch_width=asked.batch_width, threads=asked.threads,
            runtime=asked.engine,
        )  # fmt: skip


def _ready(engine: Engine, address: Address, asked: Asked, settings: Settings, shown: str | None) -> None:
    spec = engine.spec
    if asked.as_json:
        line = {
            "listen": str(address), "token": shown, "model": spec.model_id,
            "tokenizer": spec.tokenizer_fingerprint, "v": spec.vocab, "b": spec.max_block,
        }  # fmt: skip
        print(json.dumps(line), flush=True)  # noqa: T201 - the one line that programs read
        return
    console = Console(soft_wrap=True)
    secured = "TLS" if settings.tls_cert else "no TLS"
    name = escape(printable(spec.model_id))
    console.print(f"[bold]{name}[/] on [bold]{address}[/] ({secured}, V {spec.vocab:,}, B {spec.max_block})")
    if asked.no_token:
        console.print("Everybody on this machine may use it: it runs without a token.")
    elif shown is None:
        console.print("Use a token made before, or make one with [bold]ssd-cloud token new[/].")
    elif asked.token is None:
        console.print(f"Token, shown only now: [bold]{shown}[/]")
    console.print("Ctrl-C ends it; answers in progress may finish first.")
