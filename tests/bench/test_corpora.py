"""The texts of a built data folder, and what is said where they are missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ssd_bench import corpora
from ssd_diffusion.models.tiny import write_tiny
from ssd_diffusion.tokenizer import Tokenizer


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for part in ("train", "heldout"):
        for name in ("boats", "keys"):
            file = tmp_path / part / "text" / f"{name}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps({"text": f"{part} {name} {i} " * 9}) + "\n\n" for i in range(5)))
    return tmp_path


def test_texts_and_their_digests(data: Path) -> None:
    assert corpora.names(data) == ["boats", "keys"]
    assert len(corpora.texts(data, "heldout", "keys")) == 5
    assert corpora.digests(data, "train") != corpora.digests(data, "heldout")
    assert corpora.pairs(data) == ()
    (data / "heldout" / "pairs").mkdir()
    (data / "heldout" / "pairs" / "a.jsonl").write_text("")
    assert [path.name for path in corpora.pairs(data)] == ["a.jsonl"]


def test_as_much_of_each_source_as_wanted(data: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_tiny(tmp_path / "tiny"))
    whole = corpora.training_stream(tokenizer, data)
    texts = [text for name in corpora.names(data) for text in corpora.texts(data, "train", name)]
    assert whole.tolist() == corpora.stream(tokenizer, texts).tolist()
    first = corpora.training_stream(tokenizer, data, most=1)
    assert first.tolist() == corpora.stream(tokenizer, [texts[0], texts[5]]).tolist()


def test_what_is_missing_is_said(data: Path, tmp_path: Path) -> None:
    file = corpora.path_of(data, "heldout", "boats")
    for content in ("", "{}", "nonsense"):
        file.write_text(content)
        with pytest.raises(ValueError, match="no texts"):
            corpora.texts(data, "heldout", "boats")
    corpora.path_of(data, "train", "keys").unlink()
    with pytest.raises(ValueError, match="data build"):
        corpora.digests(data, "train")
    with pytest.raises(ValueError, match="data build"):
        corpora.names(tmp_path / "nowhere")
