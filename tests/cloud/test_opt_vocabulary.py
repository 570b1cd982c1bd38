"""OPT's tokenizer from its two files, against what transformers makes of a published OPT folder with the same files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from ssd_cloud.adapt import with_tokenizer
from ssd_cloud.opt_vocabulary import write_opt_tokenizer
from ssd_diffusion.errors import InvalidModel
from ssd_diffusion.models.tiny import write_tiny
from ssd_diffusion.tokenizer import Tokenizer
from ssd_diffusion.vocabulary import Vocabulary, origins

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from opt_vocabulary import real_opt, write_published, write_tiny_opt


@pytest.fixture(scope="module", params=["made", "real"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A published folder as transformers saves it again, and what this project writes from the same two files."""
    root = tmp_path_factory.mktemp("opt")
    files = write_tiny_opt(root / "files") if request.param == "made" else real_opt()
    published = write_published(root / "published", files)
    reference = transformers.AutoTokenizer.from_pretrained(published, local_files_only=True)
    reference.save_pretrained(root / "reference")
    return root, write_opt_tokenizer(files, root / "ours")


def test_the_same_files_as_transformers_writes(pair: tuple[Path, Path]) -> None:
    root, ours = pair
    assert json.loads((ours / "tokenizer.json").read_text()) == json.loads(
        (root / "reference" / "tokenizer.json").read_text()
    )
    assert Tokenizer.load(ours).fingerprint == Tokenizer.load(root / "reference").fingerprint
    core = with_tokenizer(root / "published", root / "core")  # what `adapt` makes of a plain OPT folder
    assert Tokenizer.load(ours).fingerprint == Tokenizer.load(core).fingerprint


def test_a_published_folder_is_left_as_it_was(pair: tuple[Path, Path]) -> None:
    root, _ = pair
    before = {path.name: path.read_bytes() for path in (root / "published").iterdir()}
    with_tokenizer(root / "published", root / "again")
    assert {path.name: path.read_bytes() for path in (root / "published").iterdir()} == before


def test_ids_and_opening_are_those_of_transformers(pair: tuple[Path, Path]) -> None:
    root, ours = pair
    reference = transformers.AutoTokenizer.from_pretrained(root / "published", local_files_only=True)
    held = Tokenizer.load(ours)

    @settings(max_examples=50)
    @given(st.text(alphabet=st.characters(blacklist_categories=["Cs"]), max_size=60).filter(bool))
    def same(text: str) -> None:
        if "</s>" not in text and "<pad>" not in text:
            assert [2, *held.encode(text).tolist()] == reference(text).input_ids
            assert held.chat([{"role": "user", "content": text}]).tolist() == reference(text).input_ids

    same()
    assert (held.bos_id, held.eos_ids, held.opening.tolist()) == (2, (2,), [2])
    assert held.roles == {"bos": 2, "eos": 2, "unk": 2, "pad": 1}


def test_real_size(pair: tuple[Path, Path]) -> None:
    root, ours = pair
    held = Tokenizer.load(ours)
    assert held.vocab == len(json.loads((root / "published" / "vocab.json").read_text()))


def test_what_its_control_tokens_are_for(pair: tuple[Path, Path], tmp_path: Path) -> None:
    new, old = Vocabulary.load(pair[1]), Vocabulary.load(write_tiny(tmp_path / "old"))
    found = origins(new, old)
    assert new.special == {0, 1, 2, 3}
    assert (new.start, old.start) == (2, old.tokens.index(b"<|endoftext|>"))
    between_documents = old.tokens.index(b"<|endoftext|>")
    assert [(one.how, one.ids) for one in found[:3]] == [
        ("role", (between_documents,)), ("averaged", ()), ("role", (between_documents,)),
    ]  # fmt: skip
    text = new.tokens.index(b"<|endoftext|>")  # plain text in OPT's files
    assert found[text].how == "averaged"
    assert b"".join(old.tokens[i] or b"" for i in found[text].ids) == b"<|endoftext|>"


def spoil(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    vocab = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(change(vocab)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda f: (f / "merges.txt").unlink(), "has no merges.txt"),
        (lambda f: (f / "vocab.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "vocab.json").write_bytes(b"\xff\xfe"), "cannot be read"),
        (lambda f: spoil(f, lambda v: list(v)), "is not OPT's vocabulary"),
        (lambda f: spoil(f, lambda v: v | {"<s>": 7}), "is not OPT's vocabulary"),
        (lambda f: spoil(f, lambda v: v | {"the": 5}), "is not OPT's vocabulary"),
        (lambda f: spoil(f, lambda v: v | {"the": "5"}), "is not OPT's vocabulary"),
        (lambda f: (f / "merges.txt").write_text("#version\nq qq\n"), "does not fit the vocabulary"),
    ],
)
def test_what_is_not_opts_vocabulary_is_one_sentence(tmp_path: Path, make: Callable[[Path], Any], words: str) -> None:
    folder = write_tiny_opt(tmp_path / "files")
    make(folder)
    with pytest.raises(InvalidModel, match=words) as caught:
        write_opt_tokenizer(folder, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
