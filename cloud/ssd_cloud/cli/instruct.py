"""`ssd-cloud instruct`: flags of `ssd_cloud.instruct`. Imports torch only when it runs."""

from __future__ import annotations

from ssd_cloud.cli.adapt import (
    Accumulate,
    Base,
    BatchRows,
    Block,
    Data,
    Every,
    Held,
    Json,
    Length,
    MaxMinutes,
    Out,
    Rank,
    Rate,
    Resume,
    Seed,
    Steps,
)
from ssd_cloud.cli.training import run


def instruct(
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
    learning_rate: Rate = 2e-4,
    checkpoint_minutes: Every = 3.0,
    resume: Resume = True,
    seed: Seed = 0,
    heldout_rows: Held = 4,
    as_json: Json = False,
) -> None:
    """Finetune a diffusion core on instructions (DOLLY's columns or chat JSONL)."""
    run(
        "instruct", as_json, base=base, data=tuple(data), out=out, rank=rank, block=block, length=length, rows=rows,
        accumulate=accumulate, steps=steps, max_minutes=max_minutes, learning_rate=learning_rate,
        checkpoint_minutes=checkpoint_minutes, resume=resume, seed=seed, evaluation_rows=heldout_rows,
    )  # fmt: skip
