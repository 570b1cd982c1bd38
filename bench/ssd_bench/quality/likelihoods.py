"""Likelihood of held-out documents: measures what the records lack, and sums it up with intervals.

Four parts: denoising cross-entropy by level, S1 a byte against the base, infilling, calibration. Knows the order of
things; what is measured of a document is `denoising` and `calibration`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ssd_diffusion.training.evaluate import LEVELS
from ssd_kernels.types import F64, I32

from ssd_bench import corpora, floor
from ssd_bench.console import progress
from ssd_bench.lines import JsonRecord, LineFile
from ssd_bench.quality import calibration, corpus, denoising
from ssd_bench.quality.calibration import Sums
from ssd_bench.quality.denoising import PLACES
from ssd_bench.quality.judges import AutoregressiveJudge
from ssd_bench.quality.models import Opened
from ssd_bench.quality.summary import Figures
from ssd_bench.stats import bootstrap, paired_bootstrap

ROWS = 4
"""Documents of a pass."""
KEY = ("document",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What all parts of the suite measure on.

    Attributes:
        core: the model under measurement.
        base: its autoregressive base.
        data: folder that `ssd-cloud data build` made.
        limit: documents, prefixes and pairs at most.
        seed: of every choice and of the noise.
        records: folder of records.
        about: what every record depends on: models, data, seed.
    """

    core: Opened
    base: Opened
    data: Path
    limit: int
    seed: int
    records: Path
    about: JsonRecord

    def lines(self, kind: str, key: Sequence[str], **settings: Any) -> LineFile:
        """The file of one kind of records."""
        return LineFile(self.records, kind, {**self.about, **settings}, key)


def denoising_figures(held: Held) -> Figures:
    """Cross-entropy by level and place, without and with self-conditioning, and what that gains.

    Raises:
        ValueError: no held-out document is long enough.
    """
    found = _cuts(
        held, "denoising", denoising.LENGTH, lambda ids: denoising.by_level(held.core.reading, ids, seed=held.seed)
    )
    figures: Figures = {}
    for name in (f"{level:g} {place}" for level in LEVELS for place in PLACES):
        plain, given = _column(found, name), _column(found, f"{name} conditioned")
        figures |= {
            name: bootstrap(plain), f"{name} conditioned": bootstrap(given),
            f"{name} gain": paired_bootstrap(plain, given),
        }  # fmt: skip
    return figures


def infill_figures(held: Held) -> Figures:
    """Nats a token of an infilled span in all its forms, their differences, and the ratio to the base.

    Raises:
        ValueError: no held-out document is long enough.
    """
    found = _cuts(
        held, "infill", denoising.INFILL_LENGTH,
        lambda ids: denoising.infill(held.core.reading, held.base.reading, ids),
    )  # fmt: skip
    columns = {name: _column(found, name) for name in found[0]}
    figures = {name: bootstrap(values) for name, values in columns.items()}
    for form in ("one pass", "chain"):
        both, left = columns[f"{form}, both"], columns[f"{form}, left"]
        figures[f"{form}, both - left"] = paired_bootstrap(both, left)
    chain, base = columns["chain, both"], columns["base"]
    return {
        **figures, "chain, both - base": paired_bootstrap(chain, base),
        "chain, both / base": bootstrap(chain, _positive(base)),
    }  # fmt: skip


def calibration_sums(held: Held) -> dict[str, list[Sums]]:
    """Sums of every document by place; see `calibration`.

    Raises:
        ValueError: no held-out document is long enough.
    """
    found = _cuts(
        held, "calibration", calibration.LENGTH,
        lambda ids: calibration.of_documents(held.core.reading, held.base.reading, ids, seed=held.seed),
    )  # fmt: skip
    return {place: [one[place] for one in found] for place in calibration.PLACES}


def likelihood_figures(held: Held) -> Figures:
    """Nats a byte of S1 and of the base on the floor suite's spans, difference and ratio.

    Raises:
        ValueError: a corpus cannot be read.
    """
    spans = _spans(held)
    records = held.lines("s1", ("span",))
    judge = AutoregressiveJudge(held.base.reading)
    with progress("S1", len(spans)) as advance:
        for number, span in enumerate(spans):
            name = f"{span.source}:{number}"
            if records.get(name) is None:
                ids = np.concatenate([span.context, span.tokens])
                ours = denoising.chain(held.core.reading, ids, first=len(span.context)).sum()
                base = judge.nats([span.context], [span.tokens])[0]
                records.add([{"span": name, "bytes": span.size_bytes, "s1": float(ours), "base": float(base)}])
            advance()
    rows = [records.get(f"{span.source}:{number}") or {} for number, span in enumerate(spans)]
    ours, base, size = (_column(rows, name) for name in ("s1", "base", "bytes"))
    return {
        "S1": bootstrap(ours, size), "base": bootstrap(base, size), "S1 - base": paired_bootstrap(ours, base, size),
        "S1 / base": bootstrap(ours, _positive(base)),
    }  # fmt: skip


def _spans(held: Held) -> list[floor.Span]:
    """The floor suite's spans, the corpora by turns, so that fewer are the first of more."""
    tokenizer = held.core.tokenizer
    per_corpus = [
        floor.spans(tokenizer, name, corpora.texts(held.data, "heldout", name), count=held.limit, seed=held.seed)
        for name in corpora.names(held.data)
    ]
    return [found[i] for i in range(held.limit) for found in per_corpus if i < len(found)][: held.limit]


def _cuts(held: Held, kind: str, length: int, measure: Callable[[I32], Sequence[JsonRecord]]) -> list[JsonRecord]:
    """Every document's findings, those of an earlier run included."""
    cuts = corpus.cuts(held.core.tokenizer, held.data, length=length, count=held.limit, seed=held.seed)
    records = held.lines(kind, KEY)
    missing = [cut for cut in cuts if records.get(cut.id) is None]
    with progress(kind, len(missing)) as advance:
        for first in range(0, len(missing), ROWS):
            part = missing[first : first + ROWS]
            found = measure(np.stack([cut.tokens for cut in part]))
            records.add({"document": cut.id, "found": one} for cut, one in zip(part, found, strict=True))
            for _ in part:
                advance()
    return [(records.get(cut.id) or {})["found"] for cut in cuts]


def _column(found: Sequence[JsonRecord], name: str) -> F64:
    return np.array([float(one[name]) for one in found])


def _positive(values: F64) -> F64:
    """As weights of a ratio: a span that costs nothing at all would have none."""
    return np.maximum(values, 1e-9)
