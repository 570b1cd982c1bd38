"""The texts of a folder that `ssd-cloud data build` made: held-out documents, training text, held-out conversations.

Knows the folder's layout; nothing about models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
from ssd_diffusion.tokenizer import Tokenizer
from ssd_kernels.types import I64

Part = Literal["train", "heldout"]
TRAINING_TOKENS = 200_000
"""Of each source, for models that are counted."""
_MAKE = "make the folder with: ssd-cloud data build OUT"


def names(data: Path) -> list[str]:
    """Sources that have held-out documents.

    Raises:
        ValueError: there are none.
    """
    found = sorted(path.stem for path in (data / "heldout" / "text").glob("*.jsonl"))
    if not found:
        raise ValueError(f"{data} holds no heldout/text/*.jsonl; {_MAKE}")
    return found


def path_of(data: Path, part: Part, name: str) -> Path:
    """The file of a source."""
    return data / part / "text" / f"{name}.jsonl"


def texts(data: Path, part: Part, name: str) -> list[str]:
    """Documents of a source.

    Raises:
        ValueError: its file is missing or holds no texts.
    """
    return read_texts(path_of(data, part, name))


def read_texts(path: Path) -> list[str]:
    """Texts of JSON lines {text: ...}.

    Raises:
        ValueError: the file is missing or holds no texts.
    """
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        found = [str(row["text"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no texts ({error}); {_MAKE}") from error
    if not found:
        raise ValueError(f"{path} holds no texts; {_MAKE}")
    return found


def pairs(data: Path) -> tuple[Path, ...]:
    """Files of held-out conversations."""
    return tuple(sorted((data / "heldout" / "pairs").glob("*.jsonl")))


def digests(data: Path, part: Part) -> dict[str, str]:
    """What tells the texts of each source from any others.

    Raises:
        ValueError: a source has no such part.
    """
    try:
        return {name: hashlib.sha256(path_of(data, part, name).read_bytes()).hexdigest()[:12] for name in names(data)}
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be read; {_MAKE}") from error


def training_stream(tokenizer: Tokenizer, data: Path, *, most: int = TRAINING_TOKENS) -> I64:
    """Ids of the first training documents of every source, as long as they hold fewer than `most` tokens. [n]

    Raises:
        ValueError: a source has held-out documents and no training ones.
    """
    parts = []
    for name in names(data):
        total = 0
        for text in texts(data, "train", name):
            one = stream(tokenizer, [text])
            total += len(one)
            parts.append(one)
            if total >= most:
                break
    return np.concatenate(parts)


def stream(tokenizer: Tokenizer, documents: Iterable[str]) -> I64:
    """Documents one after the other, each after an end token. [n]"""
    end = np.array([tokenizer.eos_ids[0] if tokenizer.eos_ids else 0], np.int64)
    return np.concatenate([part for text in documents for part in (end, tokenizer.encode(text).astype(np.int64))])
