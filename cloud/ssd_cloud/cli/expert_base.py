"""`ssd-cloud expert-base`: its flags, and what came out of it, for people and for programs. The work is in
`ssd_cloud.expert_base`, which is imported when the command runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from ssd_diffusion.terminal import printable

from ssd_cloud.cli.training import watching
from ssd_cloud.cli.training_flags import Block, Every, Json, Length, MaxMinutes, Rank, Rate, Resume, Seed, Steps

if TYPE_CHECKING:
    from ssd_cloud.expert_base import Made

Out = Annotated[Path, typer.Argument(metavar="OUT", help="The model folder to make.", show_default=False)]
Vocabulary = Annotated[
    str, typer.Option("--tokenizer", help="'opt', or a folder with the core's tokenizer.", envvar="SSD_TOKENIZER")
]
Source = Annotated[str, typer.Option("--from", help="'packaged' or a model folder to start from.", envvar="SSD_FROM")]
OptFiles = Annotated[
    Path | None,
    typer.Option("--vocab", help="Folder with OPT's vocab.json and merges.txt.", envvar="SSD_OPT_VOCAB"),
]
Data = Annotated[list[Path] | None, typer.Option(help="Text to train on, as of `adapt`; repeat it.", envvar="SSD_DATA")]
HeldOut = Annotated[
    list[Path] | None,
    typer.Option("--heldout", help="Text to score on (default: a twentieth of --data).", envvar="SSD_HELDOUT"),
]
ScoredTexts = Annotated[
    int, typer.Option("--heldout-texts", min=1, help="Most texts to score.", envvar="SSD_HELDOUT_TEXTS")
]


def expert_base(
    out: Out,
    tokenizer: Vocabulary,
    source: Source = "packaged",
    vocab: OptFiles = None,
    data: Data = None,
    heldout: HeldOut = None,
    heldout_texts: ScoredTexts = 64,
    steps: Steps = None,
    max_minutes: MaxMinutes = None,
    rank: Rank = 16,
    block: Block = 16,
    length: Length = 192,
    learning_rate: Rate = 2e-3,
    checkpoint_minutes: Every = 3.0,
    resume: Resume = True,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Put an expert's base into a core's vocabulary."""
    training = {
        "base": source, "data": tuple(data or ()), "out": out, "rank": rank, "block": block, "length": length,
        "steps": steps, "max_minutes": max_minutes, "learning_rate": learning_rate,
        "checkpoint_minutes": checkpoint_minutes, "resume": resume, "seed": seed,
    }  # fmt: skip
    _run(training, as_json, tokenizer=tokenizer, vocab=vocab, held_out=tuple(heldout or ()), scored_texts=heldout_texts)


def _run(training: dict[str, Any], as_json: bool, **options: Any) -> None:
    with watching() as bar:
        from ssd_diffusion.home import home

        from ssd_cloud.adapt_options import AdaptOptions
        from ssd_cloud.expert_base import ExpertBaseOptions, Watch, expert_base

        watch = Watch(bar.stage, bar.fraction, bar.progress)
        made = expert_base(ExpertBaseOptions(training=AdaptOptions(**training), **options), home(), watch)
    if as_json:
        print(json.dumps(_as_json(made)), flush=True)  # noqa: T201 - output for programs
    else:
        _show(made)


def _as_json(made: Made) -> dict[str, Any]:
    report = made.report
    training = report and {
        "steps": report.steps, "seconds": round(report.elapsed_s, 1), "targets": report.targets,
        "stopped": report.stopped,
    }  # fmt: skip
    return {
        "folder": str(made.folder), "model_id": made.model_id, "tokenizer_fingerprint": made.fingerprint,
        "rows": made.rows, "training": training, "scored": made.scored and made.scored.as_json(),
    }  # fmt: skip


def _show(made: Made) -> None:
    rows = made.rows
    told = f"{made.folder}: {made.model_id}, vocabulary {made.fingerprint[:16]}"
    Console(soft_wrap=True).print(Text(printable(told)))
    Console(soft_wrap=True).print(
        f"rows: {rows['copied']:,} copied, {rows['averaged']:,} averaged, {rows['role']:,} by role"
    )
    if made.scored is None:
        return
    table = Table("next-token loss", "nats a byte", "tokens", title_justify="left")
    found = (
        ("the source, in its own vocabulary", made.scored.source), ("in the new one", made.scored.switched),
        ("after training", made.scored.trained),
    )  # fmt: skip
    for name, one in found:
        if one is not None:
            table.add_row(name, f"{one.nats_per_byte:.4f} ± {one.error:.4f}", f"{one.tokens:,}")
    Console().print(table)
    Console(soft_wrap=True).print(f"on the same {made.scored.source.texts:,} texts, {made.scored.source.bytes:,} bytes")
