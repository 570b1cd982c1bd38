"""Whether a model fills a hidden fact, and what the true one costs it: by the infill path of the quality suite.

`both` commits the span token by token with the right side standing in the window; `left` hides the right side; `next`
is the autoregressive twin, which has no right side. A span counts as filled when greedy writing gives exactly its
tokens: every true token is the most probable one after those before it, so one pass tells. Knows records; nothing
about reports.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
from ssd_client.personalize import weights
from ssd_diffusion.models.ssd2 import Ssd2Model
from torch import Tensor

from ssd_bench.lines import JsonRecord, LineFile
from ssd_bench.personal.cloze import RIGHT, Span
from ssd_bench.personal.experts import Trio
from ssd_bench.personal.heldout import CORE
from ssd_bench.personal.reading import window_logits
from ssd_bench.quality.denoising import BLOCK, chain_levels

Form: TypeAlias = Literal["both", "left", "next"]
FORMS: tuple[Form, ...] = ("both", "left", "next")
KEY = ("span",)
LAMBDAS = tuple(lam for lam in weights.LAMBDAS if lam > 0)


def measure(
    trio: Trio, chosen: Sequence[Span], records: LineFile, *, advance: Callable[[], None], until: float
) -> None:
    """Fill what the records do not hold yet: core, base, expert, and core and expert together at every lambda.

    A record is {span, document, kind, text, tokens, nats: {FORM: {WHO: nats}}, filled: {FORM: {WHO: bool}}}; WHO is
    core, before, after or a lambda.
    """
    for span in chosen:
        if records.get(span.id) is None:
            if time.monotonic() >= until:
                return
            records.add([_record(trio, span)])
        advance()


def found_of(chosen: Sequence[Span], records: LineFile) -> list[JsonRecord]:
    """The records of these spans, as far as there are any."""
    rows = (records.get(span.id) for span in chosen)
    return [row for row in rows if row is not None]


def _record(trio: Trio, span: Span) -> JsonRecord:
    core = read(trio.core.reading, span)
    before = core if trio.core is trio.before else read(trio.before.reading, span)
    after = read(trio.after.reading, span)
    nats: dict[str, dict[str, float]] = {}
    filled: dict[str, dict[str, bool]] = {}
    for form in FORMS:
        rows = {"core": core[form], "before": before[form], "after": after[form]}
        rows |= {f"{lam:g}": _together(core[form], after[form], lam) for lam in LAMBDAS}
        scored = {who: score(logits, span) for who, logits in rows.items()}
        nats[form] = {who: one[0] for who, one in scored.items()}
        filled[form] = {who: one[1] for who, one in scored.items()}
    return {
        "span": span.id, "document": span.document, "kind": span.kind, "text": span.text, "tokens": len(span.tokens),
        "nats": nats, "filled": filled,
    }  # fmt: skip


def _together(core: Tensor, expert: Tensor, lam: float) -> Tensor:
    return (1 - lam) * torch.log_softmax(core.float(), -1) + lam * torch.log_softmax(expert.float(), -1)


def read(model: Ssd2Model, span: Span) -> dict[Form, Tensor]:
    """Logits before every token of the span, by form. [n, V]"""
    n, first = len(span.tokens), len(span.left)
    ids = np.concatenate([span.left, span.tokens, span.right])
    tokens = np.concatenate([ids, np.zeros(max(0, first + n - 1 + BLOCK - len(ids)), np.int32)])  # hidden at u = 1
    both = chain_levels(n, RIGHT)
    starts = np.tile(np.arange(first, first + n), 2)
    u = np.concatenate([both, np.ones_like(both)])
    rows, clean = window_logits(model, tokens, starts, u, seed=0, clean=slice(first - 1, first + n - 1))
    return {"both": rows[:n, 0], "left": rows[n:, 0], "next": clean}


def score(logits: Tensor, span: Span) -> tuple[float, bool]:
    """Nats of the true span, and whether greedy writing gives it."""
    rows = weights.of_truth(logits, logits, None, span.tokens, [CORE])
    best = logits.argmax(-1).cpu().numpy()
    return -float(rows[CORE].sum()), bool(np.array_equal(best, span.tokens))
