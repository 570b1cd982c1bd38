"""Stretches of held-out documents. Knows nothing about what is done with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ssd_diffusion.tokenizer import Tokenizer
from ssd_kernels.types import I32

from ssd_bench import corpora


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """A stretch of one held-out document.

    Attributes:
        id: corpus and number of the document.
        tokens: its ids.
    """

    id: str
    tokens: I32


def cuts(tokenizer: Tokenizer, data: Path, *, length: int, count: int, seed: int) -> list[Cut]:
    """Stretches from somewhere in the held-out documents, one a document, the corpora by turns.

    The order follows from the seed alone, so that fewer are the first of more.

    Raises:
        ValueError: no document is long enough.
    """
    per_corpus = [
        _of_corpus(tokenizer, data, name, length, count, [seed, i]) for i, name in enumerate(corpora.names(data))
    ]
    turns = [found[i] for i in range(count) for found in per_corpus if i < len(found)][:count]
    if not turns:
        raise ValueError(f"no held-out document in {data} has {length} tokens; give --data longer ones")
    return turns


def _of_corpus(tokenizer: Tokenizer, data: Path, name: str, length: int, count: int, seed: Sequence[int]) -> list[Cut]:
    texts = corpora.texts(data, "heldout", name)
    order = np.random.default_rng(list(seed)).permutation(len(texts))
    found: list[Cut] = []
    for i in order.tolist():
        ids = tokenizer.encode(texts[i])
        if len(ids) >= length:
            start = int(np.random.default_rng([*seed, i]).integers(0, len(ids) - length + 1))
            found.append(Cut(f"{name}:{i}", ids[start : start + length]))
        if len(found) == count:
            break
    return found
