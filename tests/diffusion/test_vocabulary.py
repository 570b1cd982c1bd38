"""Which tokens stand for which: against vocabularies whose tokens are known, and their bytes put together again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from ssd_diffusion.errors import InvalidModel
from ssd_diffusion.models.tiny import write_tiny
from ssd_diffusion.vocabulary import Vocabulary, counts, origins
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers


def byte_level(folder: Path, extra: Mapping[str, tuple[str, str]], named: Mapping[str, str]) -> Path:
    """All bytes, then merges by the token they make, then the named special tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *extra]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[*extra.values()]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in dict.fromkeys(named.values())])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(dict(named)))
    return folder


def sentence_piece(folder: Path) -> Path:
    """A vocabulary that marks the space and falls back to bytes, as Llama's first ones do."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581", "c", "a", "t", "ca", "\u2581ca"]
    merges = [("c", "a"), ("\u2581", "ca")]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            vocab={t: i for i, t in enumerate(tokens)}, merges=merges, unk_token="<unk>", byte_fallback=True
        )
    )  # fmt: skip
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<unk>", "<s>", "</s>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return folder


NAMED = {"bos_token": "<begin>", "eos_token": "<end>", "pad_token": "<end>"}
CHAT = {"bos_token": "<|endoftext|>", "eos_token": "<turn>"}


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    merges = {"ca": ("c", "a"), "cat": ("ca", "t"), "Ġs": ("Ġ", "s")}
    return Vocabulary.load(byte_level(tmp_path_factory.mktemp("old"), merges, NAMED))


def test_bytes_of_every_id(old: Vocabulary) -> None:
    assert {bytes([i]) for i in range(256)} < set(old.tokens)
    assert old.tokens[256:259] == (b"ca", b"cat", b" s")
    assert [old.tokens[i] for i in sorted(old.special)] == [b"<begin>", b"<end>"]
    assert old.roles == {"bos": 259, "eos": 260, "pad": 260}
    assert (old.separator, old.start) == (None, 260)


def test_same_bytes_are_copied_pieces_averaged_and_control_tokens_taken_by_role(
    old: Vocabulary, tmp_path: Path
) -> None:
    named = {"bos_token": "<go>", "eos_token": "<end>", "unk_token": "<odd>", "mask_token": "<m>"}
    merges = {"ca": ("c", "a"), "Ġc": ("Ġ", "c"), "Ġca": ("Ġc", "a"), "Ã©": ("Ã", "©"), "Âł": ("Â", "ł")}
    new = Vocabulary.load(byte_level(tmp_path, merges, named))
    found = origins(new, old)
    by_token = {token: (one.how, one.ids) for token, one in zip(new.tokens, found, strict=True)}
    assert by_token[b"ca"] == ("copied", (256,))
    assert by_token[b"\xc3"] == ("copied", (old.tokens.index(b"\xc3"),))
    assert by_token[b" ca"] == ("averaged", (old.tokens.index(b" "), 256))
    assert by_token[b"<go>"] == ("role", (259,))  # bos stands for bos
    assert by_token[b"<odd>"] == ("averaged", ())  # there is no unk, and a copy of the end would be written as one
    assert by_token[b"<end>"] == ("copied", (260,))
    assert by_token[b"<m>"][0] == "averaged"  # no role that the other side could have
    assert counts(found) == {"copied": 258, "averaged": len(new.tokens) - 259, "role": 1}


@pytest.mark.parametrize(
    ("old_named", "new_named", "expected"),
    [
        # a chat model's end of turn is no end of a document
        (CHAT, {"bos_token": "</s>", "eos_token": "</s>"}, ["<|endoftext|>"]),
        (CHAT, {"bos_token": "<a>", "eos_token": "<b>"}, ["<|endoftext|>", "<turn>"]),
        ({"eos_token": "<|endoftext|>"}, {"bos_token": "<a>", "eos_token": "<b>"}, ["<|endoftext|>", "<|endoftext|>"]),
        ({"eos_token": "<e>", "pad_token": "<e>"}, {"eos_token": "<b>", "pad_token": "<p>"}, ["<e>", None]),
        ({"eos_token": "<e>", "pad_token": "<q>"}, {"eos_token": "<b>", "pad_token": "<p>"}, ["<e>", "<q>"]),
        ({"pad_token": "<q>"}, {"eos_token": "<b>"}, [None]),
    ],
)  # fmt: skip
def test_who_stands_in_for_a_control_token(
    tmp_path: Path, old_named: dict[str, str], new_named: dict[str, str], expected: list[str | None]
) -> None:
    old, new = (
        Vocabulary.load(byte_level(tmp_path / n, {}, named)) for n, named in (("old", old_named), ("new", new_named))
    )
    found = origins(new, old)[256:]
    assert [one.ids for one in found] == [() if e is None else (old.tokens.index(e.encode()),) for e in expected]
    assert new.start == new.roles.get("eos", 0)
    assert [one.how for one in found] == ["averaged" if e is None else "role" for e in expected]


def test_a_vocabulary_stands_for_itself(old: Vocabulary) -> None:
    assert [one.ids for one in origins(old, old)] == [(i,) for i in range(261)]


@settings(max_examples=60)
@given(token=st.binary(min_size=1, max_size=12))
def test_pieces_of_any_bytes_make_them_up_again(old: Vocabulary, token: bytes) -> None:
    new = Vocabulary((token,), frozenset(), {}, {}, old.tokenizer)
    (found,) = origins(new, old)
    assert b"".join(old.tokens[i] or b"" for i in found.ids) == token


def test_a_vocabulary_with_marks_for_spaces(old: Vocabulary, tmp_path: Path) -> None:
    marked = Vocabulary.load(sentence_piece(tmp_path / "marked"))
    assert marked.tokens[marked.tokenizer.vocab - 1] == b" ca"
    assert marked.tokens[3 + 0xE9] == b"\xe9"
    found = origins(old, marked)
    assert found[256].how == "copied"
    assert marked.tokens[found[256].ids[0]] == b"ca"
    assert [marked.tokens[i] for i in found[258].ids] == [b" ", b"s"]


def test_holes_and_bytes_that_the_old_one_lacks_come_from_all_rows(old: Vocabulary, tmp_path: Path) -> None:
    tiny = Vocabulary.load(write_tiny(tmp_path / "tiny"))  # lacks the bytes that never occur in UTF-8
    new = Vocabulary((None, b"\xff", b"\xffa"), frozenset(), {}, {}, old.tokenizer)
    assert [one.ids for one in origins(new, tiny)] == [(), (), (tiny.tokens.index(b"a"),)]


def test_tokens_of_unknown_form_are_refused(tmp_path: Path) -> None:
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocab={"[UNK]": 0, "cat": 1, "##s": 2}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InvalidModel, match="neither byte-level nor SentencePiece"):
        Vocabulary.load(tmp_path)
