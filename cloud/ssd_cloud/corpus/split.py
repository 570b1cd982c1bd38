"""Which documents are held out, which are taken, and in which order, all by a hash of their content and a seed.

A document's part does not depend on the documents beside it, so a changed source moves nothing else. Knows nothing
about files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from ssd_cloud.corpus.model import Document

HELD_OUT_SHARE = 0.01
HELD_OUT_BYTES = 2_000_000
SET_SHARE = 0.05


def place(text: str, seed: int, purpose: str) -> float:
    """A number in [0, 1) that follows from a text, a seed and a purpose."""
    digest = hashlib.sha256(f"{seed}\0{purpose}\0{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def in_set(document: Document) -> bool:
    """Whether an encyclopaedia article belongs to the test set; the same for every seed."""
    return place(document.text, 0, "set") < SET_SHARE


def is_held_out(text: str, seed: int) -> bool:
    """Whether a text is held out."""
    return place(text, seed, "split") < HELD_OUT_SHARE


def split(documents: Sequence[Document], seed: int) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    """Training and held-out documents, each in the order given; what is over 2 MB is left to training."""
    held: set[int] = set()
    size = 0
    for i, one in enumerate(documents):
        if is_held_out(one.text, seed) and size + len(one.text.encode()) <= HELD_OUT_BYTES:
            held.add(i)
            size += len(one.text.encode())
    train = tuple(one for i, one in enumerate(documents) if i not in held)
    return train, tuple(documents[i] for i in sorted(held))


def at_most(documents: Sequence[Document], most_bytes: float, seed: int) -> tuple[Document, ...]:
    """A choice of documents of at most so many bytes, in the order given."""
    chosen: set[int] = set()
    size = 0
    for i in sorted(range(len(documents)), key=lambda i: place(documents[i].text, seed, "choice")):
        length = len(documents[i].text.encode())
        if size + length <= most_bytes:
            chosen.add(i)
            size += length
    return tuple(documents[i] for i in sorted(chosen))
