"""What the suites ask and read: questions about documents, documents, and stretches of them. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ssd_client.prompt import NOTES_HEADING, Passage
from ssd_diffusion.tokenizer import Tokenizer
from ssd_kernels.types import I32

PROMPT_TOKENS, PASSAGE_TOKENS = 32, 48


@dataclass(frozen=True, slots=True)
class Question:
    """A question about the documents.

    Attributes:
        id: its name.
        question: as a user asks it.
        answer: the reference.
        accepted: every answer that counts, the reference first.
        document: path of the document that says so; may be empty.
    """

    id: str
    question: str
    answer: str
    accepted: tuple[str, ...]
    document: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """A piece of a held-out document.

    Attributes:
        id: "PATH#NUMBER".
        path: of the document.
        prompt: ids that all members see [PROMPT_TOKENS].
        tokens: ids to score [PASSAGE_TOKENS].
    """

    id: str
    path: str
    prompt: I32
    tokens: I32


def stretches_of(tokenizer: Tokenizer, path: str, text: str) -> list[Stretch]:
    """All whole stretches of a document, one after the other without overlap; none of a very short one."""
    size, ids = PROMPT_TOKENS + PASSAGE_TOKENS, tokenizer.encode(text)
    return [
        Stretch(f"{path}#{i}", path, ids[start : start + PROMPT_TOKENS], ids[start + PROMPT_TOKENS : start + size])
        for i, start in enumerate(range(0, len(ids) - size + 1, size))
    ]


def with_notes(tokenizer: Tokenizer, passages: Sequence[Passage], prompt: I32, *, room: int) -> I32:
    """The prompt after as many passages as leave the whole within `room` tokens. [n]"""
    kept = [f"{p.title}\n{p.text.strip()}" for p in passages]
    while kept:
        before = tokenizer.encode("\n\n".join([NOTES_HEADING, *kept]) + "\n\n")
        if len(before) + len(prompt) <= room:
            return np.concatenate([before, prompt])
        kept.pop()
    return prompt
