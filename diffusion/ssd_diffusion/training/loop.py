"""The training loop, one for CPU and GPU, for adaptation, instruction finetuning and personalization.

    train(model: Ssd2Model, rows: Rows, options: TrainOptions, *,
          on_progress: Callable[[Progress], None] | None = None,
          evaluate: Callable[[Ssd2Model], float] | None = None,
          on_eval: Callable[[Evaluation], None] | None = None) -> TrainReport

Trains whatever parameters of the model require gradients (see `lora.attach`). `rows` gives the batch of a step as a
function of its number (`data.PackedRows`, `InstructionRows`, `MixedRows`). `evaluate` returns a held-out score, lower
is better; with it the loop can stop early and ends on the best weights. With a checkpoint folder a run that was killed
at any moment goes on where its last checkpoint was, and ends as it would have ended (all randomness follows from seed
and step).

Prints nothing, tokenizes nothing, and knows no file of the data.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssd_diffusion.errors import TrainingError
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.training import checkpoint
from ssd_diffusion.training.data import Batch, Rows
from ssd_diffusion.training.fused_lora import fused
from ssd_diffusion.training.objective import ObjectiveOptions, batch_loss
from ssd_diffusion.training.precision import Precision, autocast, frozen_in_half


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """How to train.

    Attributes:
        steps: most optimizer steps; None for no bound.
        max_minutes: most minutes of training, those before a resume included; None for no bound. One bound is needed.
        learning_rate: peak rate of AdamW, reached after `warmup_steps`, then falling linearly to a twentieth.
        accumulate: micro-batches per step.
        weight_decay: on the LoRA matrices only.
        clip: largest gradient norm.
        objective: what is trained.
        checkpoint_dir: where to keep `checkpoint.safetensors` and `loss.csv`; None for neither.
        checkpoint_minutes: time between checkpoints.
        resume: go on from the checkpoint when there is one; otherwise start anew.
        eval_minutes, eval_steps: time or steps between evaluations; None for none on that account.
        patience: stop after so many evaluations without a better one; None for never.
        precision: of the products, see `precision`.
        seed: seed of levels, noise and draws.
    """

    steps: int | None = None
    max_minutes: float | None = None
    learning_rate: float = 4e-4
    warmup_steps: int = 20
    accumulate: int = 1
    weight_decay: float = 0.01
    clip: float = 1.0
    objective: ObjectiveOptions = field(default_factory=ObjectiveOptions)
    checkpoint_dir: Path | None = None
    checkpoint_minutes: float = 3.0
    resume: bool = True
    eval_minutes: float | None = None
    eval_steps: int | None = None
    patience: int | None = None
    precision: Precision = "auto"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """State after a step: how far, how long still, and how the losses (nats a token) stand."""

    step: int
    fraction: float
    elapsed_s: float
    remaining_s: float
    loss: float
    noisy: float
    clean: float
    learning_rate: float
    targets_per_s: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A held-out score, lower is better."""

    step: int
    elapsed_s: float
    score: float
    best: bool


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a run came to. `stopped` is "steps", "time" or "early"; `history` has one `Progress` per step."""

    steps: int
    elapsed_s: float
    targets: int
    stopped: str
    history: tuple[Progress, ...]
    evaluations: tuple[Evaluation, ...]
    best_step: int | None


@dataclass(slots=True)
class _Run:
    """What changes from step to step."""

    step: int = 0
    elapsed_s: float = 0.0
    targets: int = 0
    history: list[Progress] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    best: dict[str, Tensor] | None = None

    def record(self) -> dict[str, Any]:
        """The JSON part of a checkpoint."""
        return {
            "step": self.step, "updates": self.step, "elapsed_s": self.elapsed_s, "targets": self.targets,
            "history": [list(asdict(p).values()) for p in self.history],
            "evaluations": [list(asdict(e).values()) for e in self.evaluations],
        }  # fmt: skip


def train(
    model: Ssd2Model,
    rows: Rows,
    options: TrainOptions,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    evaluate: Callable[[Ssd2Model], float] | None = None,
    on_eval: Callable[[Evaluation], None] | None = None,
) -> TrainReport:
    """Train the parameters that require gradients; see the module's first lines.

    Raises:
        TrainingError: nothing to train, no bound on the run, a loss that is not finite, or a foreign checkpoint.
    """
    if options.steps is None and options.max_minutes is None:
        raise TrainingError("training needs a bound: give steps or max_minutes")
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise TrainingError("nothing of this model is set to be trained; attach an adapter first")
    optimizer = _optimizer(trainable, options)
    run = _resume(options, trainable, optimizer)
    device = model.w_diff.weight.device
    model.train()
    with frozen_in_half(model, options.precision, device), fused(model):
        stopped = _train(model, rows, options, run, optimizer, trainable, _Told(on_progress, evaluate, on_eval))
    model.eval()
    best = min(run.evaluations, key=lambda e: e.score, default=None)
    return TrainReport(
        steps=run.step,
        elapsed_s=run.elapsed_s,
        targets=run.targets,
        stopped=stopped,
        history=tuple(run.history),
        evaluations=tuple(run.evaluations),
        best_step=None if best is None else best.step,
    )


@dataclass(frozen=True, slots=True)
class _Told:
    """Whom the loop calls; see `train`."""

    on_progress: Callable[[Progress], None] | None
    evaluate: Callable[[Ssd2Model], float] | None
    on_eval: Callable[[Evaluation], None] | None


def _train(
    model: Ssd2Model, rows: Rows, options: TrainOptions, run: _Run, optimizer: torch.optim.Optimizer,
    trainable: dict[str, nn.Parameter], told: _Told,
) -> str:  # fmt: skip
    """The loop itself; ends with the best weights in place. Returns why it stopped."""
    device = model.w_diff.weight.device
    saved_s = clock_s = time.monotonic()
    while (stopped := _stopped(run, options)) is None:
        rate = _rate(run, options)
        for group in optimizer.param_groups:
            group["lr"] = rate
        parts = _step(model, rows, options, run.step, list(trainable.values()))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        now_s = time.monotonic()
        _account(run, options, parts, rate, now_s - clock_s)
        clock_s = now_s
        if told.on_progress is not None:
            with autocast(options.precision, device):  # whoever is told may look at the model
                told.on_progress(run.history[-1])
        if told.evaluate is not None and _evaluation_due(run, options):
            _evaluate(model, options, told, run, trainable)
            run.elapsed_s += time.monotonic() - clock_s
            clock_s = time.monotonic()
        if options.checkpoint_dir is not None and clock_s - saved_s >= options.checkpoint_minutes * 60:
            _save(options.checkpoint_dir, trainable, optimizer, run)
            saved_s = time.monotonic()
    if told.evaluate is not None and (not run.evaluations or run.evaluations[-1].step != run.step):
        _evaluate(model, options, told, run, trainable)
    if options.checkpoint_dir is not None:
        _save(options.checkpoint_dir, trainable, optimizer, run)
    if run.best is not None:
        _put(trainable, run.best)
    return stopped


def _optimizer(trainable: dict[str, nn.Parameter], options: TrainOptions) -> torch.optim.AdamW:
    decayed = [p for name, p in trainable.items() if "lora_" in name]
    plain = [p for name, p in trainable.items() if "lora_" not in name]
    groups = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=options.learning_rate, betas=(0.9, 0.98))


def _resume(options: TrainOptions, trainable: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> _Run:
    saved = checkpoint.load(options.checkpoint_dir) if options.checkpoint_dir and options.resume else None
    if saved is None:
        return _Run()
    best = checkpoint.restore(saved, trainable, optimizer)
    record = saved.record
    return _Run(
        step=record["step"], elapsed_s=record["elapsed_s"], targets=record["targets"], best=best,
        history=[Progress(*row) for row in record["history"]],
        evaluations=[Evaluation(*row) for row in record["evaluations"]],
    )  # fmt: skip


def _fraction(run: _Run, options: TrainOptions) -> float:
    by_step = run.step / options.steps if options.steps else 0.0
    by_time = run.elapsed_s / (options.max_minutes * 60) if options.max_minutes else 0.0
    return min(1.0, max(by_step, by_time))


def _rate(run: _Run, options: TrainOptions) -> float:
    warm = min(1.0, (run.step + 1) / max(1, options.warmup_steps))
    return options.learning_rate * min(warm, max(0.05, 1.0 - _fraction(run, options)))


def _stopped(run: _Run, options: TrainOptions) -> str | None:
    if options.steps is not None and run.step >= options.steps:
        return "steps"
    if options.max_minutes is not None and run.elapsed_s >= options.max_minutes * 60:
        return "time"
    if options.patience is not None and len(run.evaluations) > options.patience:
        late = run.evaluations[-options.patience :]
        if not any(e.best for e in late):
            return "early"
    return None


def _step(
    model: Ssd2Model, rows: Rows, options: TrainOptions, step: int, parameters: list[nn.Parameter]
) -> list[tuple[float, float, float, int]]:
    device = model.w_diff.weight.device
    parts = []
    for micro in range(options.accumulate):
        batch = _to(rows.batch(step * options.accumulate + micro), device)
        with autocast(options.precision, device):
            found = batch_loss(model, batch, options.objective, (options.seed, step, micro))
        loss = float(found.loss.detach())
        if not math.isfinite(loss):
            raise TrainingError(f"the loss of step {step} is not finite; use a lower learning rate")
        if found.loss.requires_grad:
            (found.loss / options.accumulate).backward()  # type: ignore[no-untyped-call]
        parts.append((loss, found.noisy, found.clean, found.noisy_targets + found.clean_targets))
    nn.utils.clip_grad_norm_(parameters, options.clip)
    return parts


def _account(
    run: _Run, options: TrainOptions, parts: list[tuple[float, float, float, int]], rate: float, took_s: float
) -> None:
    targets = sum(p[3] for p in parts)
    run.step += 1
    run.elapsed_s += took_s
    run.targets += targets
    fraction = _fraction(run, options)
    run.history.append(
        Progress(
            step=run.step,
            fraction=fraction,
            elapsed_s=run.elapsed_s,
            remaining_s=run.elapsed_s * (1 - fraction) / fraction if fraction else math.inf,
            loss=sum(p[0] for p in parts) / len(parts),
            noisy=_mean([p[1] for p in parts]),
            clean=_mean([p[2] for p in parts]),
            learning_rate=rate,
            targets_per_s=targets / max(took_s, 1e-9),
        )
    )


def _mean(values: list[float]) -> float:
    kept = [v for v in values if math.isfinite(v)]
    return sum(kept) / len(kept) if kept else math.nan


def _evaluation_due(run: _Run, options: TrainOptions) -> bool:
    if options.eval_steps is not None and run.step % options.eval_steps == 0:
        return True
    last_s = run.evaluations[-1].elapsed_s if run.evaluations else 0.0
    return options.eval_minutes is not None and run.elapsed_s - last_s >= options.eval_minutes * 60


def _evaluate(
    model: Ssd2Model, options: TrainOptions, told: _Told, run: _Run, trainable: dict[str, nn.Parameter]
) -> None:
    if told.evaluate is None:
        return
    model.eval()
    with autocast(options.precision, model.w_diff.weight.device):
        score = float(told.evaluate(model))
    model.train()
    better = all(score < e.score for e in run.evaluations)
    if better:
        run.best = {name: p.detach().clone() for name, p in trainable.items()}
    run.evaluations.append(Evaluation(run.step, run.elapsed_s, score, better))
    if told.on_eval is not None:
        told.on_eval(run.evaluations[-1])


def _save(folder: Path, trainable: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, run: _Run) -> None:
    checkpoint.save(folder, trainable, optimizer, run.best, run.record())
    write_csv(folder / "loss.csv", run.history)


def _put(trainable: dict[str, nn.Parameter], weights: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(weights[name])


def _to(batch: Batch, device: torch.device) -> Batch:
    return replace(
        batch, tokens=batch.tokens.to(device), starts=batch.starts.to(device), supervised=batch.supervised.to(device)
    )


def write_csv(path: Path, history: list[Progress] | tuple[Progress, ...]) -> None:
    """One row per step: step, seconds, losses in nats a token, learning rate, targets a second. Renamed into place."""
    scratch = path.with_name(f".{path.name}.tmp")
    with scratch.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "elapsed_s", "loss", "noisy", "clean", "learning_rate", "targets_per_s"])
        for p in history:
            values = (p.elapsed_s, p.loss, p.noisy, p.clean, p.learning_rate, p.targets_per_s)
            writer.writerow([p.step, *(f"{v:.6g}" for v in values)])
    scratch.replace(path)


def plot(path: Path, history: list[Progress] | tuple[Progress, ...], *, smooth: int = 20) -> None:
    """The loss curves as a PNG; running means over `smooth` steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=120)
    for name, label in (("noisy", "open positions"), ("clean", "next token, clean half")):
        points = [(p.elapsed_s / 60, getattr(p, name)) for p in history if math.isfinite(getattr(p, name))]
        values = [v for _, v in points]
        means = [sum(values[max(0, i - smooth + 1) : i + 1]) / min(i + 1, smooth) for i in range(len(values))]
        if points:
            axes.plot([m for m, _ in points], means, label=label)
    axes.set_xlabel("minutes")
    axes.set_ylabel("cross-entropy, nats a token")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
