"""What a personalization is asked for, and what it tells while it runs. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ssd_client.errors import UsageError

Stage = Literal["base", "ingest", "index", "train", "sample", "select", "export", "register", "done"]
STAGES: tuple[Stage, ...] = ("base", "ingest", "index", "train", "sample", "select", "export", "register", "done")


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonalizeOptions:
    """How an expert is made.

    Attributes:
        folder: the documents.
        name: the expert's name.
        base: a model folder to start from; None for the packaged one.
        max_minutes: bound on the whole run; training gets what the rest leaves of it.
        train_minutes: bound on training.
        resume: go on where a run of the same documents and options was stopped.
        int8: also export weights in 8 bits.
        use_int8: the device runs the 8-bit graph where it agrees with torch.
        rank: rank of the LoRA adapter.
        learning_rate: peak rate.
        length: tokens of a training row.
        block: B of the training blocks.
        next_token_share, noisy_share, reading_share, asked_share: shares of pure next-token rows, of rows with noisy
            blocks, of rows that continue a document with other passages of it in a private context, and of questions
            by rule about the documents.
        kept: share of what the base says in the next-token targets of all rows but pure next-token rows, so that the
            expert goes on reading and answering as the base does.
        patience: stop after so many evaluations on held-out text without a better one.
        select_tokens: held-out tokens on which lambda and alpha are chosen.
        retrieve: look for context by meaning too, where there is an encoder.
        threads: of torch; 0 leaves the choice to it.
        seed: of everything random.
    """

    folder: Path
    name: str
    base: Path | None = None
    max_minutes: float = 8.0
    train_minutes: float = 4.5
    resume: bool = False
    int8: bool = False
    use_int8: bool = False
    rank: int = 16
    learning_rate: float = 4e-4
    length: int = 256
    block: int = 8
    next_token_share: float = 0.5
    noisy_share: float = 0.2
    reading_share: float = 0.1
    asked_share: float = 0.2
    kept: float = 0.5
    patience: int = 3
    select_tokens: int = 320
    retrieve: bool = True
    threads: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.max_minutes < float("inf") or not 0 < self.train_minutes < float("inf"):
            raise UsageError(f"--max-minutes must be above 0, not {self.max_minutes:g}")
        shares = (self.next_token_share, self.noisy_share, self.reading_share, self.asked_share)
        if min(shares) < 0 or not sum(shares) > 0:
            raise UsageError("the shares of training rows must be 0 or more, and one of them above 0")
        if not 0 <= self.kept < 1:
            raise UsageError(f"what is kept of the base must be at least 0 and below 1, not {self.kept:g}")
        if self.rank < 1 or self.block < 2 or self.length < 2 * self.block + 1 or self.select_tokens < 1:
            raise UsageError("rank, block and row length must be positive, and a row longer than two blocks")
        if not 0 < self.learning_rate < float("inf"):
            raise UsageError(f"the learning rate must be above 0, not {self.learning_rate:g}")

    def signature(self) -> dict[str, Any]:
        """The options that decide what is learned; a run can be resumed while they stay the same."""
        names = (
            "rank", "learning_rate", "length", "block", "next_token_share", "noisy_share", "reading_share",
            "asked_share", "kept", "patience", "seed",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Where a personalization stands.

    Attributes:
        stage: what is being done.
        fraction: how much of the stage is done, 0 to 1.
        seconds_left: of the stage, where it can be told.
        loss: training loss, nats a token.
        samples: training rows seen so far.
        message: a sentence for people; empty when there is only progress to tell.
        detail: numbers for programs (what was ingested, scores, timings).
    """

    stage: Stage
    fraction: float
    seconds_left: float | None = None
    loss: float | None = None
    samples: int | None = None
    message: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)


OnEvent = Callable[[Event], None]
