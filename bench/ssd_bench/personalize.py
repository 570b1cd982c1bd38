"""What makes a training step quick: each way against the plain one, on the same batch, by turns in one process.

Knows training steps; nothing about files or reports.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from unittest import mock

import torch
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.training import objective
from ssd_diffusion.training.attention import Blocks
from ssd_diffusion.training.data import Rows
from ssd_diffusion.training.objective import LOOK_AHEAD, batch_loss
from ssd_diffusion.training.precision import Precision, autocast, frozen_in_half
from torch import Tensor

from ssd_bench.report import table
from ssd_bench.results import Row

SUITE = "personalize"
LEAST = 7


@dataclass(frozen=True, slots=True)
class Way:
    """How a step is computed.

    Attributes:
        name: in the report.
        precision: of the products.
        dense: the whole mask instead of what it leaves open.
        halved: frozen weights in bfloat16.
    """

    name: str
    precision: Precision
    dense: bool
    halved: bool


PLAIN = Way("float32, whole mask", "fp32", dense=True, halved=False)
WAYS = (
    PLAIN,
    Way("bfloat16 products", "bf16", dense=True, halved=False),
    Way("and without closed pairs", "bf16", dense=False, halved=False),
    Way("and frozen weights in bfloat16 (what runs)", "bf16", dense=False, halved=True),
)


@dataclass(frozen=True, slots=True)
class Step:
    """Forward and backward pass of one batch in every way.

    Attributes:
        seconds: by way.
        loss: by way, nats a token.
        cosine: of each way's gradient with the plain one's.
        targets: supervised tokens.
    """

    seconds: dict[str, float]
    loss: dict[str, float]
    cosine: dict[str, float]
    targets: int

    def ratio(self, way: Way) -> float:
        """Time of the plain way over that of another."""
        return self.seconds[PLAIN.name] / self.seconds[way.name]


def measure(model: Ssd2Model, rows: Rows, *, steps: int, advance: Callable[[], None]) -> list[Step]:
    """Time `steps` batches in every way, the order turning each time, after one that only warms up."""
    model.train()
    found = []
    for number in range(steps + 1):
        seconds, loss, gradients = {}, {}, {}
        targets = 0
        for way in WAYS if number % 2 else reversed(WAYS):
            with _way(model, way):
                started = time.perf_counter()
                with autocast(way.precision, model.w_diff.weight.device):
                    one = batch_loss(model, rows.batch(number), LOOK_AHEAD, (0, number))
                one.loss.backward()  # type: ignore[no-untyped-call]
                seconds[way.name], loss[way.name] = time.perf_counter() - started, float(one.loss.detach())
            targets = one.noisy_targets + one.clean_targets
            gradients[way.name] = torch.cat(
                [p.grad.float().flatten() for p in model.parameters() if p.grad is not None]
            )
            model.zero_grad(set_to_none=True)
        cosine = {name: _cosine(slope, gradients[PLAIN.name]) for name, slope in gradients.items()}
        if number:
            found.append(Step(seconds, loss, cosine, targets))
        advance()
    return found


@contextmanager
def _way(model: Ssd2Model, way: Way) -> Iterator[None]:
    # What the halving itself costs is paid once a training run, so it stays outside the clock.
    device = model.w_diff.weight.device
    with frozen_in_half(model, "bf16" if way.halved else "fp32", device):
        if way.dense:
            with mock.patch.object(objective, "one_pass", dense_pass):
                yield
        else:
            yield


def dense_pass(model: Ssd2Model, inputs: Tensor, position_ids: Tensor, blocks: Blocks) -> Tensor:
    """The same pass under one mask over all pairs."""
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


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


def result_rows(steps: list[Step]) -> list[Row]:
    """The suite's ratios for the file of results."""
    found = []
    for way in WAYS[1:]:
        ratios = sorted(step.ratio(way) for step in steps)
        found.append(Row(
            suite=SUITE, name=f"training step, {PLAIN.name} / {way.name}", ratio=median(ratios), target=1.0,
            low=ratios[0], high=ratios[-1], n=len(ratios), note="median; low and high are the extremes",
        ))  # fmt: skip
    return found


def markdown(steps: list[Step], head: str) -> str:
    """The report."""
    lines = []
    for way, row in zip(WAYS[1:], result_rows(steps), strict=True):
        off = [abs(step.loss[way.name] / step.loss[PLAIN.name] - 1) for step in steps]
        lines.append([
            way.name, f"{row.ratio:.2f} ({row.low:.2f} to {row.high:.2f})", f"{median(off):.2%} (to {max(off):.2%})",
            f"{median(s.cosine[way.name] for s in steps):.3f} (from {min(s.cosine[way.name] for s in steps):.3f})",
        ])  # fmt: skip
    intro = (
        f"One training step of the packaged decoder with a LoRA on rows of the sample folder, by turns in each way; "
        f"every line adds one thing to the line before it and is compared with the plain way: {PLAIN.name}. "
        "`personalize` and `adapt` take bfloat16 by themselves where the processor multiplies it natively "
        "(avx512_bf16, amx_bf16, ARM bf16) or there is a GPU; trained weights, sums and optimizer stay in float32, and "
        "frozen weights are held in bfloat16 only where they lose nothing by it."
    )
    header = ["", "times as fast, median (range)", "loss off by, median", "cosine of gradients, median"]
    return "\n\n".join([head, intro, table(header, lines)]) + "\n"


def as_json(steps: list[Step]) -> list[dict[str, object]]:
    """Plain values of every step."""
    return [
        {"seconds": s.seconds, "loss": s.loss, "targets": s.targets,
         "cosine": {name: value if math.isfinite(value) else None for name, value in s.cosine.items()}}
        for s in steps
    ]  # fmt: skip
