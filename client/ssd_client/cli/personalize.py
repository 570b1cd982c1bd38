"""`ssd-client personalize`: a folder of documents becomes an expert, with progress all the time.

Progress goes to stderr, the result to stdout. Knows nothing about how an expert is made.
"""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssd_client.cli.flags import JSON, flag

if TYPE_CHECKING:
    from ssd_client.cli.personalize_view import View
    from ssd_client.store import ExpertCard


def personalize(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder with your documents.", show_default=False)],
    name: Annotated[str, flag("--name", "What to call the expert.")],
    max_minutes: Annotated[float, flag("--max-minutes", "Longest time for all of it.")] = 8.0,
    resume: Annotated[bool, flag("--resume", "Go on where a stopped run of the same documents was.")] = False,
    base: Annotated[
        Path | None, flag("--base", "A model folder to start from (default: the packaged one).", show_default=False)
    ] = None,
    int8: Annotated[bool, flag("--int8", "Also write 8-bit weights.")] = False,
    threads: Annotated[int, flag("--threads", "CPU threads; 0: as many as there are.", min=0)] = 0,
    seed: Annotated[int, flag("--seed", "Of everything random.")] = 0,
    json: Annotated[bool, JSON] = False,
) -> None:
    """Make an expert from a folder of documents. It and they stay on this machine."""
    from ssd_client.cli.personalize_view import View
    from ssd_client.cli.screen import print_json
    from ssd_client.errors import BadInput, Stopped

    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder; name the folder with your documents")
    chosen = {"folder": folder, "name": name, "base": base, "resume": resume, "int8": int8, "seed": seed}
    try:
        with View(quiet=json) as view:
            card = _run(chosen | {"max_minutes": max_minutes, "threads": threads}, view)
    except KeyboardInterrupt:
        raise Stopped(f"stopped; nothing was lost, go on with: {_again(folder, name)}") from None
    if json:
        print_json(asdict(card) | {"run": view.details})
    else:
        view.result(card)


def _run(chosen: dict[str, Any], view: View) -> ExpertCard:
    from ssd_diffusion.home import home
    from ssd_diffusion.openmp import wait_busily

    view.waiting("loading PyTorch")
    wait_busily()
    from ssd_client.personalize import PersonalizeOptions
    from ssd_client.personalize import personalize as make

    options = PersonalizeOptions(**chosen)
    return make(options, home=home(), progress=view.event)


def _again(folder: Path, name: str) -> str:
    return f"ssd-client personalize {shlex.quote(str(folder))} --name {shlex.quote(name)} --resume"
