"""Lambda and alpha, chosen on the device: no text is sent anywhere.

Questions about held-out documents are answered with the passages that retrieval finds as the expert's private context
(`asked`); where there are too few of these, held-out text is continued from its own beginning, as a chat, with passages
of other documents. The core that stands in here is the base model itself. The score is S1 (diffusion.md, 3): the mean
log-probability of each true token at the first open position, everything else hidden. All candidates are scored on the
same tokens. Knows nothing about files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.tokenizer import Tokenizer
from ssd_kernels.combine import expert_term
from ssd_kernels.types import I32
from torch import Tensor

from ssd_client.personalize.corpus import Unit, continuation_prompt

LAMBDAS = tuple(i / 10 for i in range(10))
ALONE = (1.0, 0.0)
"""What the expert writes with no core. Scored beside the ensembles, and told; never chosen for one."""
ALPHAS = (0.0, 0.25, 0.5, 1.0)
CHUNK = 64
_ROWS = 4  # fused at once: few enough to stay in the processor's cache from one candidate to the next
_OPENING = 32

LEAST_ANSWERS = 100
"""Tokens of answers below which held-out text chooses."""

Kind = Literal["text", "questions"]

Notes = Callable[[Unit, str], Sequence[str]]
"""Passages of other documents for a unit and the beginning of a stretch of it."""


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """A held-out stretch, or the answer to a question about held-out text, with each member's context.

    Attributes:
        public: what core and expert see without private context. [n]
        private: the same after the passages. [m]
        target: the true continuation, or the answer with its end token. [n]
    """

    public: I32
    private: I32
    target: I32


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen, and how it scores on both halves (S1, nats a token, higher is better).

    Attributes:
        lam, alpha: the weights.
        selected: S1 of the choice on the half that selects.
        alone: the expert without a core scores at least as well there: a core of the base's size adds nothing.
        table: S1 on that half by "lam,alpha".
        reported: S1 on the other half: core alone, expert alone, the choice.
        tokens: how many tokens each half has.
        by: what was scored: text that goes on, or answers to questions.
    """

    lam: float
    alpha: float
    selected: float
    table: dict[str, float]
    alone: bool = False
    reported: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    by: Kind = "text"

    def as_json(self) -> dict[str, Any]:
        """Plain values, rounded."""
        rounded = {k: round(v, 4) for k, v in self.table.items()}
        report = {k: round(v, 4) for k, v in self.reported.items()}
        return {**asdict(self), "table": rounded, "reported": report, "selected": round(self.selected, 4)}


def stretches(units: Sequence[Unit], tokenizer: Tokenizer, tokens: int, notes: Notes) -> list[Stretch]:
    """Stretches of held-out units, taken in turn from each, until there are `tokens` tokens to score."""
    out: list[Stretch] = []
    place = 0
    while sum(len(s.target) for s in out) < tokens:
        grown = False
        for unit in units:
            opening = unit.ids[place : place + _OPENING]
            target = unit.ids[place + _OPENING : place + _OPENING + CHUNK]
            if len(target) < 2 or sum(len(s.target) for s in out) >= tokens:
                continue
            found = notes(unit, tokenizer.decode(opening))
            public = continuation_prompt(tokenizer, unit.title, opening, ())
            private = continuation_prompt(tokenizer, unit.title, opening, found) if found else public
            out.append(Stretch(public, private, target))
            grown = True
        if not grown:
            break
        place += CHUNK
    return out


@torch.inference_mode()
def first_position_logits(model: Ssd2Model, context: I32, target: I32) -> Tensor:
    """Logits of the first open position before every target token, each from its own anchor with all else hidden.

    One pass: len(target) anchors beside the clean tokens, each reading what stands before it and itself. [n, V]
    """
    device = model.w_diff.weight.device
    clean = torch.tensor([*context.tolist(), *target[:-1].tolist()], device=device)
    length, wanted = len(clean), len(target)
    places = torch.arange(length, device=device)
    first = length - wanted
    anchors = places[first:]
    inputs = torch.cat([model.embed(clean[:-1]), model.embed_clean(clean[first:])])
    allowed = torch.zeros(length - 1 + wanted, length - 1 + wanted, dtype=torch.bool, device=device)
    allowed[: length - 1, : length - 1] = torch.ones(length - 1, length - 1, dtype=torch.bool, device=device).tril()
    allowed[length - 1 :, : length - 1] = places[None, :-1] < anchors[:, None]
    allowed[length - 1 :, length - 1 :] = torch.eye(wanted, dtype=torch.bool, device=device)
    position_ids = torch.cat([places[:-1], anchors])
    hidden, _ = model.forward_pass(inputs[None], position_ids[None], allowed[None], keep=False)
    return model.logits(hidden[0, length - 1 :]).float()


def of_truth(
    core: Tensor, private: Tensor, public: Tensor | None, target: I32, candidates: Sequence[tuple[float, float]]
) -> dict[tuple[float, float], Tensor]:
    """Log-probability of every true token under each (lambda, alpha). [n] in float64

    Args:
        core: logits of the core. [n, V]
        private: logits of the expert with its private context. [n, V]
        public: the same without; None where both are one, which leaves nothing to contrast. [n, V]
        target: the true tokens. [n]
        candidates: pairs to try.
    """
    general, own = torch.log_softmax(core.float(), -1).cpu(), torch.log_softmax(private.float(), -1).cpu()
    contrast: Tensor | None = None
    if public is not None and any(alpha > 0 for _, alpha in candidates):
        other = torch.log_softmax(public.float(), -1).cpu()
        contrast = torch.from_numpy(expert_term(own.numpy(), other.numpy(), alpha=1.0)).float() - own
    truth = torch.from_numpy(target.astype("int64"))[:, None]
    found = {pair: torch.zeros(len(truth), dtype=torch.float64) for pair in candidates}
    for first in range(0, len(truth), _ROWS):
        rows = slice(first, first + _ROWS)
        towards = own[rows] - general[rows]
        for alpha in dict.fromkeys(alpha for _, alpha in candidates):
            leaning = towards if contrast is None or alpha == 0 else towards.add(contrast[rows], alpha=alpha)
            for lam in (lam for lam, other in candidates if other == alpha):
                fused = torch.add(general[rows], leaning, alpha=lam)
                found[lam, alpha][rows] = fused.gather(1, truth[rows])[:, 0] - torch.logsumexp(fused, -1)
    return found


def score(
    core: Ssd2Model,
    expert: Ssd2Model,
    held: Sequence[Stretch],
    candidates: Sequence[tuple[float, float]],
    progress: Callable[[float], None] = lambda _: None,
) -> dict[tuple[float, float], float]:
    """Mean S1 of every (lambda, alpha) over all target tokens, in nats a token."""
    totals = dict.fromkeys(candidates, 0.0)
    count = sum(len(one.target) for one in held)
    for number, one in enumerate(held):
        general = first_position_logits(core, one.public, one.target)
        private, public = first_position_logits(expert, one.private, one.target), None
        if any(alpha > 0 for _, alpha in candidates) and one.private is not one.public:
            public = first_position_logits(expert, one.public, one.target)
        for pair, chosen in of_truth(general, private, public, one.target, candidates).items():
            totals[pair] += float(chosen.sum())
        progress((number + 1) / len(held))
    return {pair: total / max(count, 1) for pair, total in totals.items()}


def choose(
    core: Ssd2Model,
    expert: Ssd2Model,
    select: Sequence[Stretch],
    report: Sequence[Stretch],
    progress: Callable[[float], None] = lambda _: None,
    *,
    by: Kind = "text",
) -> Choice:
    """The best (lambda, alpha) on one half, and its score on the other; ties go to the smaller weights."""
    candidates = [(lam, alpha) for lam in LAMBDAS for alpha in ALPHAS if lam > 0 or alpha == 0]
    found = score(core, expert, select, [*candidates, ALONE], lambda done: progress(0.6 * done))
    best = min(candidates, key=lambda pair: (-found[pair], pair))
    wanted = {"core": (0.0, 0.0), "expert": ALONE, "ensemble": best}
    told = score(core, expert, report, list(dict.fromkeys(wanted.values())), lambda done: progress(0.6 + 0.4 * done))
    return Choice(
        best[0], best[1], found[best], {f"{lam:g},{alpha:g}": value for (lam, alpha), value in found.items()},
        found[ALONE] >= found[best],
        {name: told[pair] for name, pair in wanted.items()} if report else {},
        {"select": sum(len(s.target) for s in select), "report": sum(len(s.target) for s in report)}, by,
    )  # fmt: skip
