"""The changes that are compared, one line each, and what a batch of each costs. Knows no model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ssd_diffusion.training.noise import LevelMix
from ssd_diffusion.training.objective import LOOK_AHEAD, ObjectiveOptions

USUAL = "as trained"
LENGTH, BLOCK = 192, 8
_BACKWARD = 2.0
"""Of a pass with gradients, beside the forward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to train.

    Attributes:
        name: in the report.
        rank: of the LoRA.
        offsets: sets of blocks that share a row.
        transition: whether drafted tokens read the two before them.
        objective: what is trained.
    """

    name: str
    rank: int = 16
    offsets: int = 3
    transition: bool = True
    objective: ObjectiveOptions = field(default_factory=lambda: replace(LOOK_AHEAD, kept=0.5))


def _levels(name: str, **shares: float) -> Variant:
    given = {"hidden": 0.0, "accepted": 0.0, "decoding": 0.0, "uniform": 0.0, "between": 0.0, **shares}
    return _trained(name, levels=replace(LevelMix(), **given))  # type: ignore[arg-type]


def _trained(name: str, **changes: object) -> Variant:
    usual = replace(LOOK_AHEAD, kept=0.5)
    return Variant(name=name, objective=replace(usual, **changes))  # type: ignore[arg-type]


VARIANTS = (
    Variant(name=USUAL),
    Variant(name="rank 4", rank=4),
    Variant(name="rank 64", rank=64),
    _trained("no output shift", shift=False),
    _trained("self-conditioning in half of the batches", conditioned=0.5),
    _levels("one level a block, u uniform", uniform=1.0),
    _levels("one level a block, half of them hidden", hidden=0.5, uniform=0.5),
    _levels("a level for every position in half of the blocks", hidden=0.3, decoding=0.5, accepted=0.2),
    _levels("no right side", hidden=0.9, uniform=0.1),
    _levels("right side in half of the blocks", hidden=0.4, accepted=0.5, uniform=0.1),
    _levels("text after the open positions known in a third of the blocks", hidden=0.6, between=0.33, uniform=0.07),
    _trained("true tokens alone as targets of drafts", taught=0.0),
    _trained("base not kept", kept=0.0),
    Variant(name="no transition", transition=False),
    Variant(name="one set of blocks a row", offsets=1),
)


def cost(variant: Variant) -> float:
    """Positions that pass through the network for one batch; forward passes count one, with gradients three."""
    blocks = variant.offsets * ((LENGTH - BLOCK) // BLOCK)
    positions = LENGTH + blocks * (BLOCK + 1)
    objective = variant.objective
    partial = objective.levels.decoding + objective.levels.uniform
    conditioned = objective.conditioned if partial > 0 else 0.0
    return positions * (1.0 + _BACKWARD + conditioned) + (LENGTH if objective.kept else 0.0)


def batches(variant: Variant, usual: int) -> int:
    """Batches of a variant that cost what `usual` batches as trained do."""
    return max(1, round(usual * cost(VARIANTS[0]) / cost(variant)))
