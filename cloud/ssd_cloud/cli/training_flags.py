"""The flags of the training commands, which are the same for all of them. Imports torch only when a command runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from ssd_cloud.cli.training import run

Base = Annotated[
    str,
    typer.Option(help="'packaged', a model folder, a transformers folder, or a hub id.", envvar="SSD_BASE"),
]
Data = Annotated[
    list[Path],
    typer.Option(help="Text, JSONL (text, messages or DOLLY's columns), or a folder; repeat it.", envvar="SSD_DATA"),
]
Out = Annotated[Path, typer.Option(help="The model folder to make.", envvar="SSD_OUT")]
Rank = Annotated[int, typer.Option(min=1, max=512, help="Rank of the LoRA.", envvar="SSD_RANK")]
Block = Annotated[int, typer.Option(min=2, max=32, help="Open positions B of a window.", envvar="SSD_BLOCK")]
Length = Annotated[int, typer.Option(min=16, max=8192, help="Tokens of a row.", envvar="SSD_LENGTH")]
BatchRows = Annotated[int, typer.Option("--rows", min=1, max=4096, help="Rows of a batch.", envvar="SSD_ROWS")]
Accumulate = Annotated[int, typer.Option(min=1, max=4096, help="Batches of a step.", envvar="SSD_ACCUMULATE")]
Steps = Annotated[int | None, typer.Option(min=1, help="Most steps.", envvar="SSD_TRAIN_STEPS")]
MaxMinutes = Annotated[
    float | None,
    typer.Option(min=0.01, help="Most minutes, those before a resume included.", envvar="SSD_MAX_MINUTES"),
]
Rate = Annotated[float, typer.Option(min=0.0, help="Peak learning rate.", envvar="SSD_LEARNING_RATE")]
Every = Annotated[float, typer.Option(min=0.0, help="Minutes between checkpoints.", envvar="SSD_CHECKPOINT_MINUTES")]
Resume = Annotated[bool, typer.Option(help="Go on from OUT/training when it is there.", envvar="SSD_RESUME")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of order, levels and noise.", envvar="SSD_SEED")]
Held = Annotated[int, typer.Option("--heldout-rows", min=0, help="Held-out rows to score.", envvar="SSD_HELDOUT_ROWS")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.", envvar="SSD_JSON")]


def training_command(name: Literal["adapt", "instruct"], words: str, *, learning_rate: float) -> Callable[..., None]:
    """The function behind a training command.

    Args:
        name: of the command.
        words: its line of help.
        learning_rate: peak learning rate where none is given.
    """
    usual_rate = learning_rate

    def command(
        data: Data,
        out: Out,
        base: Base = "packaged",
        rank: Rank = 16,
        block: Block = 16,
        length: Length = 192,
        rows: BatchRows = 1,
        accumulate: Accumulate = 1,
        steps: Steps = None,
        max_minutes: MaxMinutes = None,
        learning_rate: Rate = usual_rate,
        checkpoint_minutes: Every = 3.0,
        resume: Resume = True,
        seed: Seed = 0,
        heldout_rows: Held = 4,
        as_json: Json = False,
    ) -> None:
        run(
            name, as_json, base=base, data=tuple(data), out=out, rank=rank, block=block, length=length, rows=rows,
            accumulate=accumulate, steps=steps, max_minutes=max_minutes, learning_rate=learning_rate,
            checkpoint_minutes=checkpoint_minutes, resume=resume, seed=seed, evaluation_rows=heldout_rows,
        )  # fmt: skip

    command.__name__, command.__doc__ = name, words
    return command
