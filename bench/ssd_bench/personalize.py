"""What makes a training step quick: each way against the plain one, on the same batch, by turns in one process.

Knows training steps; nothing about files or reports.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median

import torch
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.training.data import Rows
from ssd_diffusion.training.fused_lora import fused
from ssd_diffusion.training.objective import ObjectiveOptions, batch_loss
from ssd_diffusion.training.precision import Precision, autocast, frozen_in_half
from torch import Tensor

from ssd_bench.trainer import plainly


@dataclass(frozen=True, slots=True)
class Way:
    """How a step is computed.

    Attributes:
        name: in the report.
        precision: of the products.
        plain: the whole mask, whole logits, and torch's own attention and cross-entropy.
        halved: frozen weights in bfloat16.
        fused: LoRA layers in one step.
    """

    name: str
    precision: Precision
    plain: bool
    halved: bool
    fused: bool


PLAIN = Way("float32, plainly", "fp32", plain=True, halved=False, fused=False)
WAYS = (
    PLAIN,
    Way("bfloat16 products", "bf16", plain=True, halved=False, fused=False),
    Way("and without closed pairs, whole logits and torch's attention", "bf16", plain=False, halved=False, fused=False),
    Way("and frozen weights in bfloat16", "bf16", plain=False, halved=True, fused=False),
    Way("and LoRA layers in one step (what runs)", "bf16", plain=False, halved=True, fused=True),
)


@dataclass(frozen=True, slots=True)
class Step:
    """Forward and backward pass of one batch in every way.

    Attributes:
        seconds: by way.
        loss: by way, nats a token.
        cosine: of each way's gradient with the plain one's.
    """

    seconds: dict[str, float]
    loss: dict[str, float]
    cosine: dict[str, float]

    def off(self, way: Way) -> float:
        """Relative difference of a way's loss from the plain one's."""
        return abs(self.loss[way.name] / self.loss[PLAIN.name] - 1)


def measure(
    model: Ssd2Model, rows: Rows, options: ObjectiveOptions, *, steps: int, advance: Callable[[], None]
) -> list[Step]:
    """Time `steps` batches in every way, the order turning each time, after one that only warms up."""
    model.train()
    found = []
    for number in range(steps + 1):
        seconds, loss, gradients = {}, {}, {}
        for way in WAYS if number % 2 else reversed(WAYS):
            with _way(model, way):
                started = time.perf_counter()
                with autocast(way.precision, model.w_diff.weight.device):
                    one = batch_loss(model, rows.batch(number), options, (0, number))
                one.loss.backward()  # type: ignore[no-untyped-call]
                seconds[way.name], loss[way.name] = time.perf_counter() - started, float(one.loss.detach())
            gradients[way.name] = torch.cat(
                [p.grad.float().flatten() for p in model.parameters() if p.grad is not None]
            )
            model.zero_grad(set_to_none=True)
        cosine = {name: _cosine(slope, gradients[PLAIN.name]) for name, slope in gradients.items()}
        if number:
            found.append(Step(seconds, loss, cosine))
        advance()
    return found


def ratios(steps: Sequence[Step], way: Way) -> tuple[float, float, float]:
    """How many times as fast a way is as the plain one: the median, the smallest, the largest."""
    found = sorted(step.seconds[PLAIN.name] / step.seconds[way.name] for step in steps)
    return median(found), found[0], found[-1]


@contextmanager
def _way(model: Ssd2Model, way: Way) -> Iterator[None]:
    # What the halving itself costs is paid once a training run, so it stays outside the clock.
    with ExitStack() as stack:
        stack.enter_context(frozen_in_half(model, "bf16" if way.halved else "fp32", model.w_diff.weight.device))
        if way.plain:
            stack.enter_context(plainly())
        if way.fused:
            stack.enter_context(fused(model))
        yield


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))
