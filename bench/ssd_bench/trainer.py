"""Finetuning as one would write it with transformers' Trainer and peft: what `personalize` is held against.

The objective is the product's own, on the same rows with the same noise: what differs is how a step is computed. The
Trainer's way is one mask over all pairs of positions, logits of all positions at once, and torch's cross-entropy. Knows
models and rows; nothing about reports.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from ssd_client.documents import dedupe, ingest
from ssd_client.personalize.corpus import build_corpus, evaluation_stream, training_rows
from ssd_client.personalize.learn import held_out_batches
from ssd_client.personalize.options import PersonalizeOptions
from ssd_diffusion.models import folder
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.tokenizer import Tokenizer
from ssd_diffusion.training import lora, objective
from ssd_diffusion.training.attention import Blocks
from ssd_diffusion.training.data import Batch, Rows
from ssd_diffusion.training.evaluate import anchor_losses
from ssd_diffusion.training.loop import Progress, TrainOptions, train
from ssd_diffusion.training.loss import Teaching
from ssd_diffusion.training.objective import LOOK_AHEAD, ObjectiveOptions, batch_loss
from torch import Tensor, nn

_WAIT_S = 600.0
_HELD_OUT = 6
"""Rows of held-out text that the result is scored on."""


def dense_pass(model: Ssd2Model, inputs: Tensor, position_ids: Tensor, blocks: Blocks) -> Tensor:
    """A training pass under one mask over all pairs."""
    rows, count, length = blocks.before.shape
    width = blocks.own.shape[-1]
    total = length + count * width
    allowed = torch.zeros(rows, total, total, dtype=torch.bool, device=inputs.device)
    allowed[:, :length, :length] = torch.ones(length, length, dtype=torch.bool, device=inputs.device).tril()
    allowed[:, length:, :length] = blocks.before.repeat_interleave(width, dim=1)
    for i in range(count):
        own = slice(length + i * width, length + (i + 1) * width)
        allowed[:, own, own] = blocks.own[:, i]
    return model.forward_pass(inputs, position_ids, allowed, keep=False)[0]


def dense_causal(model: Ssd2Model, inputs: Tensor, position_ids: Tensor) -> Tensor:
    """A pass over clean tokens under a mask."""
    rows, length = position_ids.shape
    allowed = torch.ones(length, length, dtype=torch.bool, device=inputs.device).tril().expand(rows, -1, -1)
    return model.forward_pass(inputs, position_ids, allowed, keep=False)[0]


def plain_losses(model: Ssd2Model, hidden: Tensor, targets: Tensor, teaching: Teaching | None = None) -> Tensor:
    """Cross-entropy of every row, its logits all at once and kept for the way back. [N, width], [N] -> [N]"""
    logits = model.logits(hidden).float()
    if teaching is None:
        return nn.functional.cross_entropy(logits, targets, reduction="none")
    with torch.no_grad():
        said = torch.softmax(model.logits(teaching.hidden.to(hidden.dtype)).float(), dim=-1)
    share = teaching.share[:, None].float()
    wanted = share * said + (1 - share) * nn.functional.one_hot(targets, logits.shape[-1])
    return nn.functional.cross_entropy(logits, wanted, reduction="none")


@contextmanager
def plainly() -> Iterator[None]:
    """The objective by a dense mask and whole logits, for as long as the block runs."""
    ways = {"one_pass": dense_pass, "causal_pass": dense_causal, "head_losses": plain_losses}
    with ExitStack() as stack:
        for name, way in ways.items():
            stack.enter_context(mock.patch.object(objective, name, way))
        yield


class _Learner(nn.Module):
    """The model with its objective, as the Trainer calls it: tensors of one batch in, a loss out."""

    def __init__(self, model: Ssd2Model, options: ObjectiveOptions, seed: int) -> None:
        super().__init__()
        self.model, self.options, self.seed = model, options, seed

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        """One batch and its number."""
        number, origin, block = batch.pop("number"), batch.pop("origin"), batch.pop("block")
        with plainly():
            found = batch_loss(
                self.model, Batch(**batch, block=block, origin=origin), self.options, (self.seed, number, 0)
            )
        return {"loss": found.loss}


class _Batches(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows by the number of their step."""

    def __init__(self, rows: Rows, steps: int) -> None:
        self.rows, self.steps = rows, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, number: int) -> dict[str, Any]:
        batch = self.rows.batch(number)
        return {
            "tokens": batch.tokens, "starts": batch.starts, "supervised": batch.supervised, "block": batch.block,
            "origin": batch.origin, "number": number,
        }  # fmt: skip


class _InOrder(transformers.Trainer):  # type: ignore[misc]
    """The Trainer with its batches in the order of their numbers, and the product's rates, so that both learn alike."""

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> torch.optim.lr_scheduler.LambdaLR:
        """Up to the peak, then down to a twentieth; see `TrainOptions.learning_rate`."""
        warm = int(self.args.warmup_steps)

        def factor(step: int) -> float:
            return min((step + 1) / warm, max(0.05, 1.0 - step / num_training_steps))

        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
        return self.lr_scheduler

    def _get_train_sampler(self, *_: Any) -> torch.utils.data.SequentialSampler:
        return torch.utils.data.SequentialSampler(self.train_dataset)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What both sides learn, as a process of its own can be told it.

    Attributes:
        model: folder of the base.
        examples: folder whose documents are learned from.
        cache: a folder for what is read of them.
        steps: of training.
        kept: share of the base's own prediction in the targets.
        rank: of the adapter.
        seed: of everything random.
    """

    model: Path
    examples: Path
    cache: Path
    steps: int
    kept: float = 0.5
    rank: int = 16
    seed: int = 0

    def options(self) -> TrainOptions:
        """As `personalize` has them, by steps in place of minutes."""
        return TrainOptions(
            steps=self.steps, warmup_steps=10, seed=self.seed, objective=replace(LOOK_AHEAD, kept=self.kept)
        )

    def learned(self) -> tuple[Ssd2Model, Rows, list[Batch]]:
        """The model with a fresh adapter, the rows, and held-out rows."""
        tokenizer = Tokenizer.load(self.model)
        read = dedupe(ingest(self.examples, self.cache / "documents.sqlite").documents)
        corpus = build_corpus(read.documents, tokenizer, self.cache / "tokens.npz")
        asked = PersonalizeOptions(folder=self.examples, name="bench", rank=self.rank, seed=self.seed)
        held = held_out_batches(evaluation_stream(corpus.report, tokenizer), asked.block, _HELD_OUT)
        model, _ = folder.load(self.model)
        lora.attach(model, lora.LoraOptions(rank=self.rank, alpha=2 * self.rank), seed=self.seed)
        return model, training_rows(corpus, tokenizer, asked), held


class _Clock(transformers.TrainerCallback):  # type: ignore[misc]
    """Times the Trainer's steps, and waits for its turn before each."""

    def __init__(self, turn: Connection) -> None:
        self.turn, self.began = turn, 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Wait, and start the clock."""
        _await_turn(self.turn)
        self.began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Tell what the clock says."""
        self.turn.send(time.perf_counter() - self.began)


def _await_turn(turn: Connection) -> None:
    if not turn.poll(_WAIT_S):
        raise TimeoutError("the other side of the race said nothing for too long")
    turn.recv()


def run_trainer(turn: Connection, job: Job, bf16: bool) -> None:
    """One side of the race: sends the seconds of every step, then the held-out S1."""
    transformers.utils.logging.disable_progress_bar()
    model, rows, held = job.learned()
    trainer = _trainer(model, rows, job, _Clock(turn), bf16=bf16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft and Trainer about names that changed; nothing is saved or loaded here
        trainer.train()
    _tell_score(turn, model, held)


def run_ours(turn: Connection, job: Job, _: bool) -> None:
    """The other side: the product's own loop."""
    transformers.utils.logging.disable_progress_bar()
    model, rows, held = job.learned()
    _await_turn(turn)
    began = time.perf_counter()

    def told(progress: Progress) -> None:
        nonlocal began
        turn.send(time.perf_counter() - began)
        if progress.step < job.steps:
            _await_turn(turn)
        began = time.perf_counter()

    train(model, rows, job.options(), on_progress=told)
    _tell_score(turn, model, held)


def _tell_score(turn: Connection, model: Ssd2Model, held: Sequence[Batch]) -> None:
    model.eval()
    _await_turn(turn)
    turn.send(float(torch.cat([anchor_losses(model, batch.tokens).flatten() for batch in held]).mean()))


@dataclass(frozen=True, slots=True)
class Raced:
    """Seconds of every step of both, the first of which only warms up, and held-out S1 afterwards, nats a token.

    Attributes:
        plain: of the Trainer.
        ours: of the product's loop.
        plain_s1: of what the Trainer has trained.
        ours_s1: of what the product has trained.
    """

    plain: tuple[float, ...]
    ours: tuple[float, ...]
    plain_s1: float
    ours_s1: float


def race(job: Job, advance: Callable[[], None], *, bf16: bool) -> Raced:
    """Train two equal models on the same rows, each in a process of its own, step by step by turns.

    Args:
        job: what both learn.
        advance: called after every step of either.
        bf16: the Trainer's own flag; the product chooses by itself.

    Raises:
        RuntimeError: one of the two ended early.
    """
    with _side(run_trainer, job, bf16) as plain, _side(run_ours, job, bf16) as ours:
        found: tuple[list[float], list[float]] = ([], [])
        for number in range(job.steps + 1):  # the last is the score
            for which in (0, 1) if number % 2 else (1, 0):
                found[which].append(_turn_of((plain, ours)[which]))
                advance()
    return Raced(tuple(found[0][1:-1]), tuple(found[1][1:-1]), found[0][-1], found[1][-1])


def _turn_of(side: Connection) -> float:
    try:
        side.send(None)
        if side.poll(_WAIT_S):
            return float(side.recv())
    except (EOFError, OSError) as error:
        raise RuntimeError("one side of the race ended early; what it said stands above") from error
    raise RuntimeError(f"one side of the race said nothing for {_WAIT_S:g} s")


@contextmanager
def _side(run: Callable[[Connection, Job, bool], None], job: Job, bf16: bool) -> Iterator[Connection]:
    """A side in a process of its own, where torch's threads are all there are and wait as in any program."""
    before = os.environ.get("GOMP_SPINCOUNT")
    os.environ["GOMP_SPINCOUNT"] = "300000"  # libgomp's own; else modules that the child loads before torch set 0
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=run, args=(there, job, bf16), daemon=True)
    process.start()
    if before is None:
        del os.environ["GOMP_SPINCOUNT"]
    else:
        os.environ["GOMP_SPINCOUNT"] = before
    there.close()
    try:
        yield here
    finally:
        here.close()
        process.join(10.0)
        process.kill()


def _trainer(model: Ssd2Model, rows: Rows, job: Job, clock: _Clock, *, bf16: bool) -> transformers.Trainer:
    options = job.options()
    asked = transformers.TrainingArguments(
        output_dir=str(job.cache / "trainer"), max_steps=job.steps, per_device_train_batch_size=1, use_cpu=True,
        bf16=bf16, learning_rate=options.learning_rate, warmup_steps=options.warmup_steps,
        weight_decay=options.weight_decay, max_grad_norm=options.clip, adam_beta2=0.98,
        report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True, remove_unused_columns=False,
        dataloader_pin_memory=False, seed=job.seed,
    )  # fmt: skip
    return _InOrder(
        model=_Learner(model, options.objective, job.seed), args=asked, data_collator=lambda batches: batches[0],
        train_dataset=_Batches(rows, job.steps), callbacks=[clock],
    )  # fmt: skip
