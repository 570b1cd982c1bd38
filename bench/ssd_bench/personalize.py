"""What makes a training step quick: each way against the plain one, on the same batch, alternately in one process.

Knows training steps; nothing about files or reports.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.training.data import Rows
from ssd_diffusion.training.objective import ObjectiveOptions, batch_loss
from ssd_diffusion.training.precision import Precision, autocast

from ssd_bench.report import table
from ssd_bench.results import Row

SUITE = "personalize"
LEAST = 7


@dataclass(frozen=True, slots=True)
class Step:
    """Forward and backward pass of one batch in both arithmetics.

    Attributes:
        seconds: by precision.
        loss: by precision, nats a token.
        cosine: between the two gradients.
        targets: supervised tokens.
    """

    seconds: dict[Precision, float]
    loss: dict[Precision, float]
    cosine: float
    targets: int

    @property
    def ratio(self) -> float:
        """Time of float32 over that of bfloat16."""
        return self.seconds["fp32"] / self.seconds["bf16"]


def measure(model: Ssd2Model, rows: Rows, *, steps: int, advance: Callable[[], None]) -> list[Step]:
    """Time `steps` batches in both arithmetics, the order turning each time, after one that only warms up."""
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = []
    for number in range(steps + 1):
        order: tuple[Precision, ...] = ("fp32", "bf16") if number % 2 else ("bf16", "fp32")
        seconds: dict[Precision, float] = {}
        loss: dict[Precision, float] = {}
        gradients = []
        for precision in order:
            started = time.perf_counter()
            with autocast(precision, model.w_diff.weight.device):
                one = batch_loss(model, rows.batch(number), ObjectiveOptions(), (0, number))
            one.loss.backward()  # type: ignore[no-untyped-call]
            seconds[precision], loss[precision] = time.perf_counter() - started, float(one.loss.detach())
            gradients.append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))
            model.zero_grad(set_to_none=True)
        cosine = float(torch.nn.functional.cosine_similarity(gradients[0], gradients[1], dim=0))
        if number:
            found.append(Step(seconds, loss, cosine, one.noisy_targets + one.clean_targets))
        advance()
    return found


def result_row(steps: list[Step]) -> Row:
    """The suite's ratio for the file of results."""
    ratios = sorted(step.ratio for step in steps)
    return Row(
        suite=SUITE, name="training step, float32 / bfloat16 products", ratio=median(ratios), target=1.0,
        low=ratios[0], high=ratios[-1], n=len(ratios), note="median; low and high are the extremes",
    )  # fmt: skip


def markdown(steps: list[Step], head: str) -> str:
    """The report."""
    row = result_row(steps)
    off = [abs(step.loss["bf16"] / step.loss["fp32"] - 1) for step in steps]
    lines = [
        ["time of a step, float32 / bfloat16", f"{row.ratio:.2f}", f"{row.low:.2f} to {row.high:.2f}"],
        ["loss, bfloat16 off float32 by", f"{median(off):.2%}", f"{min(off):.2%} to {max(off):.2%}"],
        [
            "cosine of the two gradients",
            f"{median(s.cosine for s in steps):.3f}",
            f"from {min(s.cosine for s in steps):.3f}",
        ],
    ]
    intro = (
        "One training step of the packaged decoder with a LoRA on rows of the sample folder, in both arithmetics by "
        "turns. `personalize` and `adapt` take bfloat16 by themselves where the processor multiplies it natively "
        "(avx512_bf16, amx_bf16, ARM bf16) or there is a GPU; weights, sums and optimizer stay in float32."
    )
    return "\n\n".join([head, intro, table(["", "median", "range"], lines)]) + "\n"


def as_json(steps: list[Step]) -> list[dict[str, object]]:
    """Plain values of every step."""
    return [
        {"seconds": s.seconds, "loss": s.loss, "cosine": s.cosine if math.isfinite(s.cosine) else None,
         "targets": s.targets}
        for s in steps
    ]  # fmt: skip
