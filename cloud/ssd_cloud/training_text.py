"""What a core is trained on: files of text and chats as token ids, split, and mixed into rows.

Files are drawn from by the square root of their size, so that the largest does not drown the others. Knows nothing
about models.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from ssd_diffusion.errors import TrainingError
from ssd_diffusion.tokenizer import Tokenizer
from ssd_diffusion.training import data
from ssd_diffusion.training.chats import conversation, end_of_answer
from ssd_kernels.types import I32

from ssd_cloud.adapt_options import AdaptOptions

HELD_OUT_EVERY = 20
"""Of so many documents one is held out."""
_APART = 1000
"""Between the seeds of two sources."""
_AT_ONCE = 1000
"""Documents that are encoded together."""
_NOTHING = "there is no text in the data; name .txt, .md or .jsonl files, or folders of these"


@dataclass(frozen=True, slots=True)
class Texts:
    """Tokenized data: documents (rendered chats among them), and chats as prompt and response."""

    documents: Sequence[I32]
    pairs: Sequence[data.Pair]


def read_sources(paths: Sequence[Path], tokenizer: Tokenizer) -> list[Texts]:
    """Tokenize the data: every JSONL file for itself, and all other files together.

    Raises:
        TrainingError: a path that cannot be read, or nothing in them.
    """
    files = list(data.files(paths))
    groups = [[path] for path in files if path.suffix == ".jsonl"]
    groups.append([path for path in files if path.suffix != ".jsonl"])
    found = [_tokenized(data.read_items(group), tokenizer) for group in groups]
    kept = [texts for texts in found if texts.documents]
    if not kept:
        raise TrainingError(_NOTHING)
    return kept


def tokenize(items: Iterable[data.Item], tokenizer: Tokenizer) -> Texts:
    """Documents and chats as token ids.

    Raises:
        TrainingError: there is none.
    """
    found = _tokenized(items, tokenizer)
    if not found.documents:
        raise TrainingError(_NOTHING)
    return found


def _tokenized(items: Iterable[data.Item], tokenizer: Tokenizer) -> Texts:
    documents: list[I32] = []
    pairs: list[data.Pair] = []
    waiting: list[str] = []
    for item in items:
        if isinstance(item, str):
            waiting.append(item)
        elif item[-1]["role"] == "assistant":
            pairs.append(conversation(item, tokenizer))
        if len(waiting) == _AT_ONCE:
            documents += tokenizer.encode_many(waiting)
            waiting = []
    documents += tokenizer.encode_many(waiting)
    end = end_of_answer(tokenizer)
    return Texts([*documents, *(_joined(pair, end) for pair in pairs)], pairs)


def _joined(pair: data.Pair, end: int) -> I32:
    """A conversation as one text."""
    parts = [part for turn in (pair, *pair.later) for part in (turn.prompt, turn.response, [end])]
    return np.concatenate([np.asarray(part, np.int32) for part in parts])


def split_documents(sources: Sequence[Texts]) -> tuple[list[Texts], Texts | None]:
    """Every twentieth document and chat is held out, after one fixed shuffle; None when there are too few."""
    total = sum(len(texts.documents) for texts in sources)
    if total < HELD_OUT_EVERY:
        return list(sources), None
    order = [int(i) for i in np.random.default_rng(7).permutation(total)]
    held, rank = set(order[::HELD_OUT_EVERY]), {number: place for place, number in enumerate(order)}
    train, first = [], 0
    for texts in sources:
        numbers = sorted(range(first, first + len(texts.documents)), key=rank.__getitem__)
        kept = [texts.documents[i - first] for i in numbers if i not in held]
        train.append(Texts(kept, [p for i, p in enumerate(texts.pairs) if i % HELD_OUT_EVERY]))
        first += len(texts.documents)
    every = list(chain.from_iterable(texts.documents for texts in sources))
    return train, Texts([every[i] for i in sorted(held)], [])


def training_rows(
    sources: Sequence[Texts], options: AdaptOptions, tokenizer: Tokenizer, own: Sequence[Sequence[int]] = ()
) -> data.Rows:
    """Packed rows of everything, mixed with prompts whose responses are supervised and with text of the model's own.

    Args:
        sources: each drawn from by the square root of its tokens, or of its number of pairs.
        options: shares and shapes.
        tokenizer: for the tokens between documents and after responses.
        own: texts that the model wrote itself.

    Raises:
        TrainingError: too little text.
    """
    eos = tokenizer.eos_ids[0] if tokenizer.eos_ids else 0
    chats = options.chat_share if any(texts.pairs for texts in sources) else 0.0
    written = options.own_share if own else 0.0
    found: list[tuple[float, data.Rows]] = []
    if chats < 1.0:
        # A file of chats alone is left to the answers, if there is anything else.
        plain = [texts for texts in sources if len(texts.documents) > len(texts.pairs)] if chats else sources
        streams = _streams(plain or sources, options.block, eos)
        found += [(share * (1.0 - written) * (1.0 - chats), rows) for share, rows in _packed(streams, options)]
    if chats > 0.0:
        found += [
            (share * (1.0 - written) * chats, rows)
            for share, rows in _answers(sources, options, end_of_answer(tokenizer))
        ]
    if written > 0.0:
        rows = data.PackedRows(data.pack(own, eos), **_shape(options), seed=options.seed + 3, origin="own")
        found.append((written, rows))
    return data.MixedRows(found, options.seed)


def _streams(sources: Sequence[Texts], block: int, eos: int) -> list[I32]:
    """One stream a source; those that are too short for a row go into the last one."""
    streams = sorted((data.pack(texts.documents, eos) for texts in sources), key=len)
    short = [stream for stream in streams[:-1] if len(stream) <= 2 * block]
    return [*streams[len(short) : -1], np.concatenate([*short, streams[-1]])]


def _packed(streams: Sequence[I32], options: AdaptOptions) -> Iterator[tuple[float, data.Rows]]:
    """Rows of text with their shares, which sum to 1."""
    weights = np.sqrt([len(stream) for stream in streams])
    for number, (stream, share) in enumerate(zip(streams, weights / weights.sum(), strict=True)):
        for part, noisy, salt in ((1.0 - options.next_token_share, True, 0), (options.next_token_share, False, 2)):
            if part > 0.0:
                seed = options.seed + salt + _APART * number
                yield float(share) * part, data.PackedRows(stream, **_shape(options), seed=seed, noisy=noisy)


def _answers(sources: Sequence[Texts], options: AdaptOptions, eos: int) -> Iterator[tuple[float, data.Rows]]:
    """Rows of prompts and answers with their shares, which sum to 1."""
    held = [texts.pairs for texts in sources if texts.pairs]
    total = sum(math.sqrt(len(pairs)) for pairs in held)
    for number, pairs in enumerate(held):
        yield math.sqrt(len(pairs)) / total, data.InstructionRows(
            pairs, length=options.answer_length, block=options.block, rows=options.answer_rows, eos=eos,
            seed=options.seed + 1 + _APART * number, offsets=options.offsets,
        )  # fmt: skip


def _shape(options: AdaptOptions) -> dict[str, Any]:
    return {
        "length": options.length, "block": options.block, "rows": options.rows, "offsets": options.offsets,
    }  # fmt: skip
