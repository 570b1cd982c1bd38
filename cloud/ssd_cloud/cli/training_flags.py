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
Adapter = Annotated[
    str | None,
    typer.Option(help="'packaged' or a folder: go on from this adapter of the base.", envvar="SSD_ADAPTER"),
]
LookAhead = Annotated[
    bool,
    typer.Option("--look-ahead", help="Train drafts, so that a pass settles several tokens.", envvar="SSD_LOOK_AHEAD"),
]
Own = Annotated[
    list[Path] | None,
    typer.Option(help="Text that the model wrote itself, of `own-text`; repeat it.", envvar="SSD_OWN"),
]
OwnShare = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="Share of the batches that are such text.", envvar="SSD_OWN_SHARE")
]
ChatShare = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="Share of the other batches that are chats.", envvar="SSD_CHAT_SHARE")
]
RightSide = Annotated[
    float,
    typer.Option(min=0.0, max=1.0, help="Share of windows with the text after them known.", envvar="SSD_RIGHT_SIDE"),
]
Kept = Annotated[
    float,
    typer.Option(min=0.0, max=1.0, help="Share of the unadapted base in the targets of text.", envvar="SSD_KEPT"),
]
Rank = Annotated[int, typer.Option(min=1, max=512, help="Rank of a fresh LoRA.", envvar="SSD_RANK")]
Block = Annotated[int, typer.Option(min=2, max=32, help="Open positions B of a window.", envvar="SSD_BLOCK")]
Length = Annotated[int, typer.Option(min=16, max=8192, help="Tokens of a row of text.", envvar="SSD_LENGTH")]
AnswerLength = Annotated[
    int, typer.Option(min=16, max=8192, help="Most tokens of a prompt and its answer.", envvar="SSD_ANSWER_LENGTH")
]
Offsets = Annotated[int, typer.Option(min=1, max=32, help="Sets of blocks that share a row.", envvar="SSD_OFFSETS")]
BatchRows = Annotated[int, typer.Option("--rows", min=1, max=4096, help="Rows of a batch.", envvar="SSD_ROWS")]
AnswerRows = Annotated[int, typer.Option(min=1, max=4096, help="Rows of a batch of chats.", envvar="SSD_ANSWER_ROWS")]
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
        adapter: Adapter = None,
        look_ahead: LookAhead = False,
        own: Own = None,
        own_share: OwnShare = 0.2,
        chat_share: ChatShare = 0.15,
        right_side: RightSide = 0.0,
        kept: Kept = 0.0,
        rank: Rank = 16,
        block: Block = 16,
        offsets: Offsets = 2,
        length: Length = 192,
        answer_length: AnswerLength = 640,
        rows: BatchRows = 1,
        answer_rows: AnswerRows = 1,
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
            name, as_json, base=base, adapter=adapter, data=tuple(data), own=tuple(own or ()), out=out,
            look_ahead=look_ahead, own_share=own_share, chat_share=chat_share, right_side=right_side, kept=kept,
            rank=rank, block=block, offsets=offsets, length=length, answer_length=answer_length, rows=rows,
            answer_rows=answer_rows, accumulate=accumulate, steps=steps, max_minutes=max_minutes,
            learning_rate=learning_rate, checkpoint_minutes=checkpoint_minutes, resume=resume, seed=seed,
            evaluation_rows=heldout_rows,
        )  # fmt: skip

    command.__name__, command.__doc__ = name, words
    return command
