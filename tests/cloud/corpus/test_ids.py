"""Packed token ids: the texts in order, each ended, in shards of a bounded size, with an index that is true."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ssd_cloud.corpus.ids import write_ids
from ssd_cloud.errors import DataError
from ssd_diffusion.tokenizer import Tokenizer


def read(folder: Path, index: dict, part: str) -> list[int]:
    data = b"".join((folder / one["file"]).read_bytes() for one in index["parts"][part])
    return np.frombuffer(data, index["dtype"]).tolist()


def ended(tokenizer: Tokenizer, texts: list[str]) -> list[int]:
    return [int(t) for text in texts for t in [*tokenizer.encode(text), tokenizer.eos_ids[0]]]


def test_ids_are_the_texts_ended_by_eos(tmp_path: Path, tokenizer: Tokenizer, english):
    counts: dict[str, int] = {}
    texts = [english(i) for i in range(21)]
    index = write_ids(
        tmp_path, {"train": texts, "heldout": [english(50, 2)]}, tokenizer, shard_bytes=2048,
        on_count=counts.__setitem__,
    )  # fmt: skip
    assert json.loads((tmp_path / "index.json").read_text()) == index
    shards = index["parts"]["train"]
    assert len(shards) > 3
    for one in shards:
        data = (tmp_path / one["file"]).read_bytes()
        assert len(data) <= 2048
        assert (one["sha256"], one["tokens"]) == (hashlib.sha256(data).hexdigest(), len(data) // 2)
    assert read(tmp_path, index, "train") == ended(tokenizer, texts)
    assert read(tmp_path, index, "heldout") == ended(tokenizer, [english(50, 2)])
    assert sum(counts[text] for text in texts) == sum(one["tokens"] for one in shards)
    assert sum(one["documents"] for one in shards) <= len(texts)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["index.json", "heldout-000.bin", *(one["file"] for one in shards)]
    )
    assert (index["vocab"], index["eos"], index["fingerprint"], index["dtype"]) == (
        tokenizer.vocab, tokenizer.eos_ids[0], tokenizer.fingerprint, "<u2",
    )  # fmt: skip


def test_a_text_longer_than_a_shard_is_cut_and_not_lost(tmp_path: Path, tokenizer: Tokenizer, english):
    texts = [english(1, 60), english(2, 1)]
    index = write_ids(tmp_path, {"train": texts}, tokenizer, shard_bytes=400)
    assert all(one["tokens"] <= 200 for one in index["parts"]["train"])
    assert read(tmp_path, index, "train") == ended(tokenizer, texts)


def test_a_large_vocabulary_needs_four_bytes(tmp_path: Path, tokenizer: Tokenizer, english):
    index = write_ids(tmp_path, {"train": [english(1)]}, replace(tokenizer, vocab=70_000), shard_bytes=400)
    assert index["dtype"] == "<u4"
    assert all((tmp_path / one["file"]).stat().st_size <= 400 for one in index["parts"]["train"])
    assert read(tmp_path, index, "train") == ended(tokenizer, [english(1)])


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path, tokenizer: Tokenizer, english):
    with pytest.raises(DataError, match="no token that ends a text"):
        write_ids(tmp_path / "ids", {"train": [english(1)]}, replace(tokenizer, eos_ids=()))
    assert not (tmp_path / "ids").exists()
