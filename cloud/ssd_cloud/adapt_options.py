"""What `adapt` and its sisters are asked to do, and what each answer means for the loop. Knows no file's content."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ssd_diffusion.training import loop
from ssd_diffusion.training.noise import LevelMix
from ssd_diffusion.training.objective import LOOK_AHEAD, ObjectiveOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptOptions:
    """What to adapt, on what, and how.

    Attributes:
        base: "packaged", a model folder, a plain transformers folder, or a hub id.
        adapter: "packaged" or the folder of an adapter of this base to go on from; None for a fresh one.
        data: text files, JSONL files (`text`, `messages`, or DOLLY's columns), or folders of these.
        own: files of text that the model wrote itself, see `own_text`.
        out: the model folder to make.
        look_ahead: train drafts: a transition, and levels as they stand when several tokens are drafted.
        right_side: share of the windows in which the text after the open positions is known.
        kept: share of the unadapted base in the next-token targets of text.
        rank: of a fresh LoRA; its alpha is twice that.
        block: B of the training windows.
        length: tokens of a packed row.
        answer_length: most tokens of a prompt with its response.
        rows: rows per batch of text.
        answer_rows: rows per batch of prompts with responses.
        accumulate: batches per step.
        offsets: sets of blocks that share a row's clean half.
        chat_share: share of the batches that are prompts with supervised responses (when there are chats).
        own_share: share of the batches that are text of the model's own (when there is some).
        next_token_share: share of the batches of text that have no noisy blocks, and the next-token loss alone.
        steps, max_minutes, learning_rate, warmup_steps, checkpoint_minutes, resume, seed: see `TrainOptions`.
        evaluation_rows: held-out rows to score before and after; 0 for none.
    """

    base: str
    data: tuple[Path, ...]
    out: Path
    adapter: str | None = None
    own: tuple[Path, ...] = ()
    look_ahead: bool = False
    right_side: float = 0.0
    kept: float = 0.0
    rank: int = 16
    block: int = 16
    length: int = 192
    answer_length: int = 640
    rows: int = 1
    answer_rows: int = 1
    accumulate: int = 1
    offsets: int = 2
    chat_share: float = 0.15
    own_share: float = 0.2
    next_token_share: float = 0.0
    steps: int | None = None
    max_minutes: float | None = None
    learning_rate: float = 5e-4
    warmup_steps: int = 20
    checkpoint_minutes: float = 3.0
    resume: bool = True
    seed: int = 0
    evaluation_rows: int = 4


def train_options(options: AdaptOptions) -> loop.TrainOptions:
    """How the loop is to train; its state is kept in OUT/training."""
    objective = LOOK_AHEAD if options.look_ahead else ObjectiveOptions()
    objective = replace(objective, kept=options.kept, levels=_with_right_side(objective.levels, options.right_side))
    return loop.TrainOptions(
        steps=options.steps, max_minutes=options.max_minutes, learning_rate=options.learning_rate,
        warmup_steps=options.warmup_steps, accumulate=options.accumulate, objective=objective,
        checkpoint_dir=options.out / "training", checkpoint_minutes=options.checkpoint_minutes,
        resume=options.resume, seed=options.seed,
    )  # fmt: skip


def _with_right_side(mix: LevelMix, share: float) -> LevelMix:
    """The same mixture of patterns in all windows but a share, and in these the right side known."""
    left = 1.0 - share
    return replace(
        mix, hidden=mix.hidden * left, accepted=mix.accepted * left, decoding=mix.decoding * left,
        uniform=mix.uniform * left, between=share,
    )  # fmt: skip
