"""Held-out documents as prompts, and the training text for the n-gram judge. Knows the layout of the data folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from ssd_diffusion.tokenizer import Tokenizer
from ssd_kernels.types import I32, I64

from ssd_bench.floor import read_corpus, stream


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """A stretch of one held-out document.

    Attributes:
        id: corpus and number of the document.
        tokens: its ids.
    """

    id: str
    tokens: I32


def names(data: Path) -> list[str]:
    """Corpora of a data folder that have held-out documents.

    Raises:
        ValueError: there are none.
    """
    found = sorted(path.name.removesuffix("-heldout.jsonl") for path in data.glob("*-heldout.jsonl"))
    if not found:
        raise ValueError(f"{data} holds no *-heldout.jsonl; write them with: python -m ssd_cloud.data_public OUT")
    return found


def digests(data: Path, part: Literal["train", "heldout"]) -> dict[str, str]:
    """What tells the texts of each corpus from any others.

    Raises:
        ValueError: a file cannot be read.
    """
    try:
        return {name: _sha256(data / f"{name}-{part}.jsonl") for name in names(data)}
    except OSError as error:
        raise ValueError(
            f"{error.filename} cannot be read; write it with: python -m ssd_cloud.data_public OUT"
        ) from error


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def cuts(tokenizer: Tokenizer, data: Path, *, length: int, count: int, seed: int) -> list[Cut]:
    """Stretches from somewhere in the held-out documents, one a document, the corpora by turns.

    The order follows from the seed alone, so that fewer are the first of more.

    Raises:
        ValueError: no document is long enough.
    """
    per_corpus = [_of_corpus(tokenizer, data, name, length, count, [seed, i]) for i, name in enumerate(names(data))]
    turns = [found[i] for i in range(count) for found in per_corpus if i < len(found)][:count]
    if not turns:
        raise ValueError(f"no held-out document in {data} has {length} tokens; give --data longer ones")
    return turns


def _of_corpus(tokenizer: Tokenizer, data: Path, name: str, length: int, count: int, seed: Sequence[int]) -> list[Cut]:
    texts = read_corpus(data / f"{name}-heldout.jsonl")
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


def training_stream(tokenizer: Tokenizer, data: Path) -> I64:
    """The ids of all training documents of the same corpora, each after an end token. [n]

    Raises:
        ValueError: a corpus has held-out documents and no training ones.
    """
    return stream(tokenizer, [text for name in names(data) for text in read_corpus(data / f"{name}-train.jsonl")])
