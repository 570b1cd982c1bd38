"""Rows to train on: packed text, instruction pairs, and mixtures, all a pure function of seed and step.

A batch depends on nothing but the source, its seed and the step's number, so a run that was killed goes on with the
rows that it would have seen. Tokenizing is the caller's. Knows nothing about networks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from ssd_kernels.types import I32, Bool
from torch import Tensor

from ssd_diffusion.errors import TrainingError

Origin = Literal["text", "own", "answers"]
"""Where rows come from: text of others, text that the model wrote itself, or prompts with answers of others."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Rows of one forward pass.

    Attributes:
        tokens: clean ids. [R, n]
        starts: first position of each block, -1 where a row has fewer blocks. [R, N], N = 0 for next-token rows
        supervised: tokens that are targets. [R, n]
        block: B.
        origin: where the rows come from.
    """

    tokens: Tensor
    starts: Tensor
    supervised: Tensor
    block: int
    origin: Origin = "text"


class Rows(Protocol):
    """A source of batches."""

    def batch(self, step: int) -> Batch:
        """The batch of a step; the same for the same step."""
        ...


def pack(documents: Iterable[Sequence[int] | I32], eos: int) -> I32:
    """One token stream: documents one after the other, each ended by `eos`. [total]"""
    parts = [np.append(np.asarray(ids, np.int32), np.int32(eos)) for ids in documents if len(ids)]
    return np.concatenate(parts) if parts else np.zeros(0, np.int32)


def block_starts(length: int, block: int, offset: int) -> list[int]:
    """Starts of the blocks that fit from an offset (at least 1) on."""
    return list(range(offset, length - block + 1, block))


class PackedRows:
    """Windows of a token stream, reshuffled every epoch, each row with a random block offset."""

    def __init__(
        self, stream: I32, *, length: int, block: int, rows: int, seed: int, noisy: bool = True, offsets: int = 1,
        origin: Origin = "text",
    ) -> None:  # fmt: skip
        """Cut a stream into rows.

        Args:
            stream: token ids.
            length: n, tokens per row; shortened to the stream when that is shorter.
            block: B.
            rows: R, rows per batch.
            seed: order and offsets.
            noisy: False for pure next-token rows (no blocks).
            offsets: sets of blocks per row, each at an offset of its own; more of them share one clean half.
            origin: of the stream.

        Raises:
            TrainingError: fewer tokens than two blocks.
        """
        if len(stream) < 2 * block + 1:
            raise TrainingError(f"there are only {len(stream)} tokens to train on; {2 * block + 1} are the least")
        self.stream, self.length = stream, min(length, len(stream))
        self.block, self.rows, self.seed, self.sets = block, rows, seed, offsets if noisy else 0
        self.origin = origin
        self.per_epoch = max(1, len(stream) // self.length)

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        tokens = np.stack([self._row(step * self.rows + r) for r in range(self.rows)])
        rng = np.random.default_rng([self.seed, 1, step])
        count = (self.length - self.block) // self.block
        starts = np.full((self.rows, self.sets * count), -1, np.int64)
        for r in range(self.rows):
            for i in range(self.sets):
                found = block_starts(self.length, self.block, int(rng.integers(1, self.block + 1)))[:count]
                starts[r, i * count : i * count + len(found)] = found
        supervised = torch.ones(tokens.shape, dtype=torch.bool)
        return Batch(torch.from_numpy(tokens), torch.from_numpy(starts), supervised, self.block, self.origin)

    def _row(self, index: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        epoch, place = divmod(index, self.per_epoch)
        rng = np.random.default_rng([self.seed, 0, epoch])
        shift = int(rng.integers(0, len(self.stream) - self.per_epoch * self.length + 1))
        first = shift + int(rng.permutation(self.per_epoch)[place]) * self.length
        return self.stream[first : first + self.length].astype(np.int64)


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt in the clean context and the response to learn, as ids; the response without its end token.

    Attributes:
        prompt: what stands before the response.
        response: what is learned.
        later: further turns of the same conversation; their prompts are what stands between the end token of the
            response before and their own response.
    """

    prompt: Sequence[int] | I32
    response: Sequence[int] | I32
    later: tuple[Pair, ...] = ()


@dataclass(frozen=True, slots=True)
class _Conversation:
    """Ids of a row, and where its responses lie, end tokens included: [first, end) each."""

    ids: I32
    responses: list[tuple[int, int]]


class InstructionRows:
    """Conversations with supervised response blocks, the last response filled up to its block's end with EOS."""

    def __init__(
        self, pairs: Sequence[Pair], *, length: int, block: int, rows: int, seed: int, eos: int, offsets: int = 1
    ) -> None:
        """Prepare pairs.

        Args:
            pairs: what to learn; turns that no longer fit a row are left out, and of a first turn that is too long the
                prompt loses its beginning, the response its end.
            length: most tokens per row.
            block: B.
            rows: R, rows per batch.
            seed: order.
            eos: the token that ends a response.
            offsets: sets of blocks per response; those after the first begin before the response, each elsewhere.

        Raises:
            TrainingError: no pair.
        """
        if not pairs:
            raise TrainingError("there are no instruction pairs to train on")
        self.rows, self.block, self.seed, self.eos, self.sets = rows, block, seed, eos, offsets
        self._built = [self._build(pair, length) for pair in pairs]

    def batch(self, step: int) -> Batch:
        """The batch of a step, padded to its longest row."""
        built = []
        for r in range(self.rows):
            epoch, place = divmod(step * self.rows + r, len(self._built))
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self._built))
            built.append(self._built[order[place]])
        length = max(len(one.ids) for one in built)
        places = [self._starts(one, step * self.rows + r) for r, one in enumerate(built)]
        tokens = np.full((self.rows, length), self.eos, np.int64)
        starts = np.full((self.rows, max(map(len, places))), -1, np.int64)
        supervised: Bool = np.zeros((self.rows, length), np.bool_)
        for r, one in enumerate(built):
            tokens[r, : len(one.ids)] = one.ids
            for first, end in one.responses:
                supervised[r, first:end] = True
            starts[r, : len(places[r])] = places[r]
        found, places_of, wanted = (torch.from_numpy(part) for part in (tokens, starts, supervised))
        return Batch(found, places_of, wanted, self.block, "answers")

    def _starts(self, one: _Conversation, index: int) -> list[int]:
        """Starts of a row's blocks: for every response from its first token on, then sets that begin before it."""
        rng = np.random.default_rng([self.seed, 1, index])
        found: list[int] = []
        for first, end in one.responses:
            earlier = [int(rng.integers(1, self.block)) for _ in range(self.sets - 1)]
            for begin in (first, *(max(1, first - e) for e in earlier)):
                found += range(begin, min(end, len(one.ids) - self.block + 1), self.block)
        return found

    def _build(self, pair: Pair, length: int) -> _Conversation:
        room = max(self.block, (length // 2 // self.block) * self.block)
        response = self._ended(pair.response[: room - 1])
        prompt = [*pair.prompt][-(length - len(response)) :] if length > len(response) else []
        ids = [*(prompt or [self.eos]), *pair.response[: room - 1], self.eos]
        responses = [(len(prompt or [self.eos]), len(ids))]
        for turn in pair.later:
            if len(ids) + len(turn.prompt) + len(self._ended(turn.response)) > length:
                break
            first = len(ids) + len(turn.prompt)
            ids += [*turn.prompt, *turn.response, self.eos]
            responses.append((first, len(ids)))
        first, end = responses[-1]
        ids += [self.eos] * (-(end - first) % self.block)
        responses[-1] = (first, len(ids))
        return _Conversation(np.array(ids, np.int32), responses)

    def _ended(self, response: Sequence[int] | I32) -> list[int]:
        """A response with its end token, filled up to whole blocks."""
        ended = [*response, self.eos]
        return ended + [self.eos] * (-len(ended) % self.block)


class MixedRows:
    """Several sources by share; which source a step draws from follows from the seed and the step."""

    def __init__(self, sources: Sequence[tuple[float, Rows]], seed: int) -> None:
        """Args: sources with their shares (any positive scale); seed of the choice."""
        if not sources:
            raise TrainingError("there is nothing to train on")
        shares = np.array([share for share, _ in sources], float)
        self.shares, self.sources, self.seed = shares / shares.sum(), [rows for _, rows in sources], seed

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        # Low-discrepancy choice: every source gets its share in any short stretch of steps too.
        point = (np.random.default_rng(self.seed).random() + step * 0.6180339887498949) % 1.0
        pick = int(np.searchsorted(np.cumsum(self.shares), point, side="right"))
        return self.sources[min(pick, len(self.sources) - 1)].batch(step)


Item = str | list[dict[str, str]]
"""A document, or a conversation as messages with role and content."""


def read_items(paths: Iterable[Path]) -> Iterator[Item]:
    """Documents (text files, and JSONL rows with `text`) and conversations (DOLLY's columns, or chat `messages`).

    Raises:
        TrainingError: a file that cannot be read, or a JSONL row of no known form.
    """
    for path in files(paths):
        if path.suffix == ".jsonl":
            for number, row in enumerate(_json_rows(path), 1):
                yield _item(row, f"{path}:{number}")
        else:
            try:
                yield path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise TrainingError(f"{path} cannot be read as text ({error}); leave it out") from error


def _item(row: dict[str, Any], where: str) -> Item:
    if isinstance(row.get("text"), str):
        return str(row["text"])
    if isinstance(row.get("instruction"), str) and isinstance(row.get("response"), str):
        asked = "\n\n".join(str(x) for x in (row.get("context"), row["instruction"]) if x)
        return [{"role": "user", "content": asked}, {"role": "assistant", "content": row["response"]}]
    messages = row.get("messages")
    if isinstance(messages, list) and messages and all(isinstance(m, dict) for m in messages):
        return [{"role": str(m.get("role")), "content": str(m.get("content"))} for m in messages]
    raise TrainingError(f"{where} has no text, no messages, and not DOLLY's columns (instruction, context, response)")


def files(paths: Iterable[Path]) -> Iterator[Path]:
    """The files of text that paths name; of a folder those of a known kind, in order.

    Raises:
        TrainingError: a path that is not there.
    """
    for path in paths:
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.suffix in (".txt", ".md", ".jsonl") and p.is_file())
        elif path.is_file():
            yield path
        else:
            raise TrainingError(f"there is no file or folder {path}; check the path")


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise TrainingError(f"{path}:{number} is not a JSON object; leave it out")
                    yield row
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise TrainingError(f"{path} cannot be read as JSON lines ({error}); leave it out") from error
