"""Token ids of documents in shards of at most 16 MiB, each document ended by EOS, and an index of them.

Ids are uint16, or uint32 where the vocabulary needs it, little-endian, without a header: `numpy.fromfile` reads them.
Knows nothing about where documents come from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ssd_diffusion.tokenizer import Tokenizer
from ssd_kernels.types import I32

from ssd_cloud.errors import DataError

SHARD_BYTES = 16 << 20
INDEX = "index.json"


def write_ids(
    folder: Path,
    parts: Mapping[str, Sequence[str]],
    tokenizer: Tokenizer,
    *,
    shard_bytes: int = SHARD_BYTES,
    on_progress: Callable[[float], None] = lambda _: None,
    on_count: Callable[[str, int], None] = lambda _text, _tokens: None,
) -> dict[str, Any]:
    """Write the shards and the index of every part.

    Args:
        folder: made when missing.
        parts: texts in the order of their ids, by part ("train", "heldout").
        tokenizer: whose ids are written.
        shard_bytes: largest shard.
        on_progress: called with the fraction that is done.
        on_count: called with every text and how many tokens it has, EOS included.

    Returns:
        The index: dtype, eos, vocabulary, fingerprint, and for each part its shards with tokens, documents, SHA-256.

    Raises:
        DataError: the tokenizer has no token that ends a text.
    """
    if not tokenizer.eos_ids:
        raise DataError("the tokenizer has no token that ends a text; name a model folder whose tokenizer has one")
    folder.mkdir(parents=True, exist_ok=True)
    dtype = np.dtype("<u2" if tokenizer.vocab <= 1 << 16 else "<u4")
    total = max(1, sum(len(texts) for texts in parts.values()))
    done = 0

    def encoded(texts: Sequence[str]) -> Iterator[I32]:
        nonlocal done
        for text in texts:
            ids = np.concatenate([tokenizer.encode(text), np.array(tokenizer.eos_ids[:1], np.int32)])
            on_count(text, len(ids))
            yield ids
            done += 1
            if done % 200 == 0:
                on_progress(done / total)

    index = {
        "dtype": dtype.str, "eos": tokenizer.eos_ids[0], "vocab": tokenizer.vocab, "fingerprint": tokenizer.fingerprint,
        "parts": {
            name: list(_shards(folder, name, encoded(texts), dtype, shard_bytes // dtype.itemsize))
            for name, texts in parts.items()
        },
    }  # fmt: skip
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return index


def _shards(
    folder: Path, part: str, documents: Iterable[I32], dtype: np.dtype[Any], most: int
) -> Iterator[dict[str, Any]]:
    """Write shards; a document longer than the room left begins a new one, one longer than a shard is cut."""
    held: list[I32] = []
    size = ended = number = 0
    for ids in documents:
        pieces = [ids[at : at + most] for at in range(0, len(ids), most)]
        for piece in pieces:
            if size + len(piece) > most:
                yield _shard(folder / f"{part}-{number:03}.bin", held, ended, dtype)
                held, size, ended, number = [], 0, 0, number + 1
            held.append(piece)
            size += len(piece)
        ended += 1
    if held:
        yield _shard(folder / f"{part}-{number:03}.bin", held, ended, dtype)


def _shard(path: Path, held: list[I32], documents: int, dtype: np.dtype[Any]) -> dict[str, Any]:
    data = np.concatenate(held).astype(dtype).tobytes()
    path.write_bytes(data)
    return {
        "file": path.name, "tokens": len(data) // dtype.itemsize, "documents": documents,
        "sha256": hashlib.sha256(data).hexdigest(),
    }  # fmt: skip
