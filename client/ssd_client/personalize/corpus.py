"""Documents as token ids: which are held out, and the rows that an expert learns from.

Held-out units are whole documents, chosen by a hash of their path so that the choice stays when other files change;
where there are too few documents, long sections are the units. Half of the held-out units selects (early stop, lambda,
alpha), the other half is reported. Knows nothing about networks.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ssd_diffusion.tokenizer import Tokenizer
from ssd_diffusion.training.chats import end_of_answer
from ssd_diffusion.training.data import InstructionRows, MixedRows, PackedRows, Pair, Rows, pack
from ssd_kernels.types import I32

from ssd_client.documents import Document, split
from ssd_client.errors import BadInput
from ssd_client.personalize.options import PersonalizeOptions
from ssd_client.prompt import NOTES_HEADING

LEAST_TOKENS = 400
ASKED_LENGTH = 768
"""Most tokens of a question's row: four passages of 500 characters, and a few turns."""
_LEAST_DOCUMENTS = 6
_HELDOUT_SHARE = 0.12
_MOST_HELDOUT_TOKENS = 6000
_SECTION_CHARS = 1500
_OPENING_TOKENS = 32
_NOTES = 2


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """A document, or a long section of one: the unit that is held out or learned.

    Attributes:
        path: of its document.
        title: for people and prompts.
        text: its text.
        ids: its tokens. [n]
    """

    path: str
    title: str
    text: str
    ids: I32


@dataclass(frozen=True, slots=True)
class Corpus:
    """What is learned from, what selects, and what is reported; no unit is in two of them."""

    train: tuple[Unit, ...]
    select: tuple[Unit, ...]
    report: tuple[Unit, ...]


def build_corpus(documents: Sequence[Document], tokenizer: Tokenizer, cache: Path) -> Corpus:
    """Tokenize (unchanged documents come from the cache) and split.

    Raises:
        BadInput: too little text.
    """
    units = _units(documents, tokenizer, cache)
    total = sum(len(u.ids) for u in units)
    if total < LEAST_TOKENS or len(units) < 3:
        chars = sum(len(u.text) for u in units)
        raise BadInput(
            f"there is too little text to learn from ({chars} characters, {total} tokens); add documents until there "
            f"are at least {LEAST_TOKENS} tokens, about {LEAST_TOKENS * max(1, chars) // max(1, total)} characters"
        )
    sectioned = len({u.path for u in units}) < len(units)
    ranked = sorted(units, key=lambda u: _rank(u, sectioned))
    wanted = min(_MOST_HELDOUT_TOKENS, total * _HELDOUT_SHARE)
    held: list[Unit] = []
    for unit in ranked:
        if len(held) >= 2 and sum(len(u.ids) for u in held) >= wanted:
            break
        if len(held) + 1 < len(units):
            held.append(unit)
    halves: tuple[list[Unit], list[Unit]] = ([], [])
    for unit in held:  # the next one goes to the smaller half
        min(halves, key=lambda half: sum(len(u.ids) for u in half)).append(unit)
    kept = {id(u) for u in held}
    return Corpus(tuple(u for u in units if id(u) not in kept), tuple(halves[0]), tuple(halves[1]))


def training_rows(
    corpus: Corpus, tokenizer: Tokenizer, options: PersonalizeOptions, asked: Sequence[Pair] = ()
) -> Rows:
    """The mixture of rows an expert learns from; a pure function of its arguments.

    Args:
        corpus: what is learned from and what is held out.
        tokenizer: of the base.
        options: shares, lengths and seed.
        asked: questions about the documents, see `asked_pairs`; their share goes to the others where there are none.

    Raises:
        TrainingError: too few tokens for a row.
    """
    stop = tokenizer.eos_ids[0] if tokenizer.eos_ids else 0
    stream = pack([u.ids.tolist() for u in corpus.train], stop)
    length = min(options.length, max(2 * options.block + 1, len(stream) // 2))
    sources: list[tuple[float, Rows]] = []
    for share, noisy, salt in ((options.next_token_share, False, 0), (options.noisy_share, True, 1)):
        if share > 0:
            packed = PackedRows(
                stream, length=length, block=options.block, rows=1, seed=options.seed + salt, noisy=noisy, offsets=1
            )
            sources.append((share, packed))
    chats = (
        (options.reading_share, reading_pairs(corpus.train, tokenizer), options.length),
        (options.asked_share, asked, ASKED_LENGTH),
    )
    for salt, (share, pairs, most) in enumerate(chats, start=2):
        if share > 0 and pairs:
            rows = InstructionRows(
                pairs, length=most, block=options.block, rows=1, seed=options.seed + salt, eos=end_of_answer(tokenizer)
            )
            sources.append((share, rows))
    return MixedRows(sources, options.seed)


def reading_pairs(units: Sequence[Unit], tokenizer: Tokenizer) -> list[Pair]:
    """Rows that teach reading private context: [other passages of a document ; prompt] -> the passage that follows."""
    pairs = []
    for unit in units:
        passages = _pieces(unit)
        for i, passage in enumerate(passages):
            ids = tokenizer.encode(passage)
            if len(ids) < 2 * _OPENING_TOKENS:
                continue
            others = [p for j, p in enumerate(passages) if j != i][max(0, i - _NOTES) : max(0, i - _NOTES) + _NOTES]
            notes = [f"{unit.title}: {p}" for p in others]
            opening, rest = ids[:_OPENING_TOKENS], ids[_OPENING_TOKENS:]
            prompt = continuation_prompt(tokenizer, unit.title, opening, notes)
            pairs.append(Pair(prompt.tolist(), rest.tolist()))
    return pairs


def continuation_prompt(tokenizer: Tokenizer, title: str, opening: I32, notes: Sequence[str]) -> I32:
    """A chat that asks to continue a text, notes as the system's words, the same form as at answer time. [n]"""
    asked = {"role": "user", "content": f'Continue this text from "{title}":\n\n{tokenizer.decode(opening)}'}
    if not notes:
        return tokenizer.chat([asked])
    numbered = [f"[{i}] {note.strip()}" for i, note in enumerate(notes, 1)]
    return tokenizer.chat([{"role": "system", "content": "\n\n".join([NOTES_HEADING, *numbered])}, asked])


def evaluation_stream(units: Sequence[Unit], tokenizer: Tokenizer) -> I32:
    """Held-out units as one token stream. [n]"""
    return pack([u.ids.tolist() for u in units], tokenizer.eos_ids[0] if tokenizer.eos_ids else 0)


def _pieces(unit: Unit) -> list[str]:
    document = Document(id="", path=unit.path, title=unit.title, text=unit.text, sha256="", mtime=0.0, format="text")
    return [p.text for p in split(document)]


def _rank(unit: Unit, sectioned: bool) -> bytes:
    named = f"{unit.path}\0{unit.text if sectioned else ''}"
    return hashlib.sha256(named.encode("utf-8", "replace")).digest()


def _units(documents: Sequence[Document], tokenizer: Tokenizer, cache: Path) -> list[Unit]:
    known = _read_cache(cache)
    texts: list[tuple[str, str, str]] = []
    for document in documents:
        if len(documents) >= _LEAST_DOCUMENTS:
            texts.append((document.path, document.title, document.text))
        else:
            pieces = split(document, max_chars=_SECTION_CHARS)
            texts += [(document.path, piece.heading or document.title, piece.text) for piece in pieces]
    units, fresh = [], {}
    for path, title, text in texts:
        key = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
        ids = known[key] if key in known else tokenizer.encode(text)
        fresh[key] = ids
        if len(ids):
            units.append(Unit(path, title, text, ids))
    if fresh.keys() != known.keys():
        _write_cache(cache, fresh)
    return units


def _read_cache(path: Path) -> dict[str, I32]:
    try:
        with path.open("rb") as file, np.load(file) as saved:
            return {key: saved[key] for key in saved.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):  # it is a cache: what cannot be read is made again
        return {}


def _write_cache(path: Path, ids: dict[str, I32]) -> None:
    scratch = path.with_name(f".{path.name}.tmp")
    with scratch.open("wb") as file:
        np.savez(file, **ids)  # type: ignore[arg-type]
    scratch.replace(path)
