"""`ssd-cloud data`: builds training data and test sets from packages, and lists where they come from.

The work is `ssd_cloud.corpus`, which is imported when a command runs. Knows nothing about how data is made.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

data_app = typer.Typer(help="Make the training data of the core from installable packages.", no_args_is_help=True)

Out = Annotated[Path, typer.Argument(help="The folder to make.")]
Cache = Annotated[
    Path | None,
    typer.Option(help="Where fetched packages are kept (default: in this user's data).", envvar="SSD_DATA_CACHE"),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.", envvar="SSD_JSON")]


@data_app.command()
def build(
    out: Out,
    source: Annotated[
        list[str] | None, typer.Option(help="A source that `list` shows; repeat it (default: all).")
    ] = None,
    max_mb: Annotated[float | None, typer.Option(min=0.01, help="Most training text, in MB.")] = None,
    cache: Cache = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Go on without packages that cannot be fetched.")
    ] = False,
    tokenizer: Annotated[str, typer.Option(help="'packaged', or a model folder.", envvar="SSD_TOKENIZER")] = "packaged",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split and of every choice.", envvar="SSD_SEED")] = 0,
    as_json: Json = False,
) -> None:
    """Make text, instruction pairs and token ids; OUT/train is what `adapt --data` takes."""
    from ssd_cloud.corpus.build import BuildOptions
    from ssd_cloud.corpus.build import build as make

    options = BuildOptions(
        out=out, sources=tuple(source or ()), max_mb=max_mb, cache=_cache(cache), skip_missing=skip_missing, seed=seed
    )
    examples = tuple(path for path in _examples() if path.exists())
    with _progress() as progress:
        card = make(options, lambda: _tokenizer(tokenizer), held_out_files=examples, on_progress=progress)
    if as_json:
        _print_json(card)
        return
    size = sum(one["bytes"] for one in card["sources"])
    rows = sum(one["rows"] for name, one in card["pairs"].items() if name.startswith("train/"))
    words = f"{out}: {size / 1e6:.1f} MB of text, {card['tokens']['train']:,} tokens, {rows:,} pairs"
    _say([words, f"what is in it: {out}/card.md", f"train on it: ssd-cloud adapt --data {out}/train --out FOLDER"])
    if card["missing"]:
        _say([f"missing: {', '.join(sorted(card['missing']))}"])


@data_app.command("sets")
def sets_(
    out: Out,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A set; repeat it (default: all).")] = None,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Write test document sets that training never sees, as folders to personalize on."""
    from ssd_cloud.corpus.build import exclusive
    from ssd_cloud.corpus.sets import write_sets

    with _progress() as progress, exclusive(out) as scratch:
        card = write_sets(scratch, tuple(set_ or ()), _cache(cache), on_progress=progress)
    if as_json:
        _print_json(card)
        return
    _say([f"{out}/{name}: {one['documents']:,} documents, {one['bytes'] / 1e6:.1f} MB" for name, one in card.items()])


@data_app.command("list")
def list_(as_json: Json = False) -> None:
    """Show every source and set with its licence, and what is left out and why."""
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from ssd_cloud.corpus import registry

    if as_json:
        keys = ("name", "what", "package", "licence", "stated", "reason", "use", "share_mb")
        found = [{k: v for k, v in asdict(one).items() if k in keys} for one in (*registry.SOURCES, *registry.SETS)]
        _print_json({"sources": found, "left_out": [asdict(one) for one in registry.LEFT_OUT]})
        return
    table = Table("name", "what", "package", "licence", "stated in", "used for")
    for one in (*registry.SOURCES, *registry.SETS):
        used = "training" if one.use == "text" else "tests"
        table.add_row(one.name, one.what, f"{one.package.client} {one.package.name}", one.licence, one.stated, used)
    left = Table("left out", "why")
    for gone in registry.LEFT_OUT:
        left.add_row(gone.name, gone.why)
    Console().print(table)
    Console().print(left)


def _cache(given: Path | None) -> Path:
    if given is not None:
        return given.expanduser()
    from ssd_diffusion.home import home

    return home() / "packages"


def _examples() -> tuple[Path, ...]:
    """The sample folder and its questions, where this runs from a checkout; an installed package has neither."""
    return (Path(__file__).resolve().parents[3] / "examples",)


def _tokenizer(name: str) -> Any:
    from ssd_diffusion import packaged
    from ssd_diffusion.home import home
    from ssd_diffusion.tokenizer import Tokenizer

    folder = packaged.ensure(home()) if name == "packaged" else Path(name).expanduser()
    return Tokenizer.load(folder)


@contextmanager
def _progress() -> Iterator[Callable[[str, float], None]]:
    """On stderr, a bar with the stage and the time left; where that is no terminal, a line for each stage."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _stages()
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )  # fmt: skip
    began = time.monotonic()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=1.0, left="")

        def update(words: str, done: float) -> None:
            left = (time.monotonic() - began) * (1 - done) / done if done > 0.02 else 0.0
            bar.update(task, description=words, completed=done, left=f"{left:.0f} s left" if left else "")

        yield update


def _stages() -> Callable[[str, float], None]:
    said = ""

    def update(words: str, done: float) -> None:
        nonlocal said
        if words != said:
            said = words
            sys.stderr.write(f"{words} ({done:.0%})\n")

    return update


def _say(lines: list[str]) -> None:
    from rich.console import Console
    from rich.text import Text
    from ssd_diffusion.terminal import printable

    for line in lines:
        Console(soft_wrap=True).print(Text(printable(line)))


def _print_json(value: object) -> None:
    print(json.dumps(value, ensure_ascii=False), flush=True)  # noqa: T201 - output for programs
