"""Which tokens of one vocabulary stand for a token of another: the one with its bytes or its role, or its pieces.

Reads what every id means as bytes from a folder's tokenizer.json: byte-level vocabularies (GPT-2, OPT, SmolLM2), and
those that write a mark for the space (SentencePiece). Knows nothing about weights.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ssd_diffusion.errors import InvalidModel
from ssd_diffusion.tokenizer import TOKENIZER_FILE, Tokenizer

How = Literal["copied", "role", "averaged"]
ROLES = ("eos", "bos", "pad", "unk")
"""What a special token can be for; the first one counts for a token that is several."""

_SEPARATORS = (b"<|endoftext|>", b"<|end_of_text|>")
"""Tokens between documents, in vocabularies that end a turn with another one."""
_FALLBACKS = {"separator": ("separator", "eos"), "eos": ("eos", "separator"), "bos": ("bos", "separator")}
_SPELLED = {"<s>": "bos", "</s>": "eos", "<pad>": "pad", "<unk>": "unk"}
"""What tokens spelled so, at the head of a vocabulary, are for; OPT's files do not say it of <s> and <unk>."""
_SPACE = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A vocabulary by id.

    Attributes:
        tokens: the bytes of every id, None for an id without a token. [V]
        special: ids that text never gives: control tokens, and those with a purpose.
        purposes: what the ids of named special tokens are for.
        roles: the id that stands for each role.
        tokenizer: splits a text into ids.
    """

    tokens: tuple[bytes | None, ...]
    special: frozenset[int]
    purposes: Mapping[int, str]
    roles: Mapping[str, int]
    tokenizer: Tokenizer

    @staticmethod
    def load(folder: Path) -> Vocabulary:
        """The vocabulary of a folder with a tokenizer.json.

        Raises:
            InvalidModel: no tokenizer, or one whose tokens cannot be read as bytes.
        """
        tokenizer = Tokenizer.load(folder)
        source: dict[str, Any] = json.loads((folder / TOKENIZER_FILE).read_text(encoding="utf-8"))
        added = {int(one["id"]): one for one in source.get("added_tokens") or []}
        kinds = _kinds(source.get("decoder"))
        spelled = [tokenizer.token(i) for i in range(tokenizer.vocab)]
        tokens = tuple(
            str(added[i]["content"]).encode() if i in added else _bytes(text, kinds, folder)
            for i, text in enumerate(spelled)
        )
        spelled_for = {i: _SPELLED[text] for i, text in enumerate(spelled[: len(_SPELLED)]) if text in _SPELLED}
        named = {role: tokenizer.roles[role] for role in ROLES if role in tokenizer.roles}
        purposes = spelled_for | {i: role for role, i in reversed(named.items())}
        special = purposes.keys() | {i for i, one in added.items() if one.get("special")}
        roles = {role: i for i, role in spelled_for.items()} | named
        return Vocabulary(tokens, frozenset(special), purposes, roles, tokenizer)

    @property
    def separator(self) -> int | None:
        """The token between documents, where the vocabulary has one beside, or as, its end."""
        return next((i for i in sorted(self.special) if self.tokens[i] in _SEPARATORS), None)

    @property
    def start(self) -> int:
        """The token that a document of its own is read after: what opens a text, parts it from another, or ends one."""
        opening = self.tokenizer.opening.tolist()
        ends = [i for i in (self.separator, self.roles.get("eos")) if i is not None]
        return next(iter([*opening, *ends]), 0)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a token's row comes from: the mean of the rows `ids` of the other vocabulary; of all where there are none.

    Attributes:
        how: "copied" (the same bytes), "role" (another token for the same purpose) or "averaged" (pieces of its bytes).
        ids: ids in the other vocabulary; none where it has nothing of the kind.
    """

    how: How
    ids: tuple[int, ...]


def origins(new: Vocabulary, old: Vocabulary) -> tuple[Origin, ...]:
    """For every id of a new vocabulary, which ids of an old one its row starts from. [V of the new one]

    Control tokens and text stay apart: a model that ends its answer must not write what only looks like an end (OPT
    spells <|endoftext|> as text), and padding that starts as a copy of the end would be written as often as that.
    """
    text, control = _by_bytes(old, special=False), _by_bytes(old, special=True)
    own = _own_tokens(old)
    found = []
    for i, token in enumerate(new.tokens):
        same = (control if i in new.special else text).get(token or b"")
        if same is not None:
            found.append(Origin("copied", (same,)))
        elif i not in new.purposes:
            found.append(Origin("averaged", _pieces(token or b"", old, text)))
        else:
            stand_in = _stand_in(i, new, own)
            found.append(Origin("averaged", ()) if stand_in is None else Origin("role", (stand_in,)))
    return tuple(found)


def counts(found: Sequence[Origin]) -> dict[How, int]:
    """How many rows came about in each way."""
    seen = Counter(one.how for one in found)
    return {"copied": seen["copied"], "averaged": seen["averaged"], "role": seen["role"]}


def _pieces(token: bytes, old: Vocabulary, ordinary: Mapping[bytes, int]) -> tuple[int, ...]:
    """Ids that the old tokenizer splits a token's bytes into; where these are no text, the longest that fits first."""
    try:
        return tuple(int(i) for i in old.tokenizer.encode(token.decode("utf-8")))
    except UnicodeDecodeError:  # a token may end within a character
        pass
    ids: list[int] = []
    place = 0
    while place < len(token):
        end = next((e for e in range(len(token), place, -1) if token[place:e] in ordinary), None)
        if end is not None:
            ids.append(ordinary[token[place:end]])
        place = end or place + 1  # some vocabularies lack the bytes that never occur in UTF-8
    return tuple(ids)


def _own_tokens(old: Vocabulary) -> dict[str, int]:
    """The token for each role, and between documents; a role that only borrows another's token has none."""
    own: dict[str, int] = {} if old.separator is None else {"separator": old.separator}
    for role in ROLES:
        if role in old.roles and old.roles[role] not in own.values():
            own[role] = old.roles[role]
    return own


def _stand_in(token_id: int, new: Vocabulary, own: Mapping[str, int]) -> int | None:
    """The old token for the same purpose; one that both opens and ends a text (OPT's </s>) stands between documents."""
    both = new.roles.get("bos") == new.roles.get("eos") == token_id
    role = "separator" if both else new.purposes[token_id]
    return next((own[one] for one in _FALLBACKS.get(role, (role,)) if one in own), None)


def _by_bytes(vocabulary: Vocabulary, *, special: bool) -> dict[bytes, int]:
    """Ids by bytes, the lowest first where two ids mean the same."""
    held: dict[bytes, int] = {}
    for i, token in enumerate(vocabulary.tokens):
        if token and (i in vocabulary.special) == special:
            held.setdefault(token, i)
    return held


def _kinds(decoder: object) -> frozenset[str]:
    """The types of a decoder's parts; a Replace of the space's mark counts as Metaspace."""
    if not isinstance(decoder, dict):
        return frozenset()
    own = {str(decoder.get("type"))}
    if decoder.get("pattern") == {"String": _SPACE}:
        own.add("Metaspace")
    return frozenset(own).union(*(_kinds(part) for part in decoder.get("decoders") or []))


def _bytes(text: str, kinds: frozenset[str], folder: Path) -> bytes | None:
    if not text:
        return None
    if "ByteLevel" in kinds:
        return b"".join(_ALPHABET.get(char, char.encode()) for char in text)
    if "Metaspace" not in kinds:
        raise InvalidModel(
            f"the tokens in {folder / TOKENIZER_FILE} are neither byte-level nor SentencePiece's, so their bytes are "
            "unknown; take a model with a vocabulary of either kind"
        )
    byte = _BYTE.fullmatch(text) if "ByteFallback" in kinds else None
    return bytes([int(byte[1], 16)]) if byte else text.replace(_SPACE, " ").encode()


def _byte_alphabet() -> dict[str, bytes]:
    """The byte behind every character that byte-level BPE writes (GPT-2's table)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    shifted = [byte for byte in range(256) if byte not in plain]
    return {chr(b): bytes([b]) for b in plain} | {chr(256 + i): bytes([b]) for i, b in enumerate(shifted)}


_ALPHABET = _byte_alphabet()
