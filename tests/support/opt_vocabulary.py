"""A small vocabulary in OPT's form, for tests that run where OPT's own is not; and where that one is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tokenizers import pre_tokenizers

_MERGES = (
    "t h", "Ġ th", "Ġth e", "Ġ a", "i n", "Ġ s", "r e", "o n", "Ġs h", "e r", "Ġ o", "a t", "Ġo f", "Ġ m", "c k",
    "Ġa t", "e n", "Ġ b", "o r", "Ġ k", "Ġk e",
)  # fmt: skip
_LAST = ("<|endoftext|>", "madeupword0000", "madeupword0001", "madeupword0002", "<mask>")

PUBLISHED = {
    **{
        name: {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False,
               "__type": "AddedToken"}
        for name, content in (("bos_token", "</s>"), ("eos_token", "</s>"), ("unk_token", "</s>"),
                              ("pad_token", "<pad>"))
    },
    "errors": "replace", "add_prefix_space": False, "add_bos_token": True, "tokenizer_class": "GPT2Tokenizer",
}  # fmt: skip
"""tokenizer_config.json of OPT's folders, as they are published."""


def write_tiny_opt(folder: Path) -> Path:
    """vocab.json and merges.txt with OPT's head and tail, all bytes, and a few merges: 286 tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    merged = [merge.replace(" ", "") for merge in _MERGES]
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *merged, *sorted(pre_tokenizers.ByteLevel.alphabet()), *_LAST]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *_MERGES, ""]))
    return folder


def write_published(folder: Path, vocabulary: Path) -> Path:
    """The tokenizer's files of a published OPT folder, which has no tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((vocabulary / name).read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps(PUBLISHED))
    (folder / "config.json").write_text(json.dumps({"model_type": "opt", "architectures": ["OPTForCausalLM"]}))
    return folder


def real_opt() -> Path:
    """The folder with OPT's own vocab.json and merges.txt; skips the test where there is none."""
    named = os.environ.get("SSD_OPT_VOCAB")
    if not named:
        pytest.skip("OPT's vocabulary is not part of the repository; set SSD_OPT_VOCAB to a folder with it")
    return Path(named)
