"""Next-token loss per byte of text: what compares models whose vocabularies differ.

Every text is scored from a start of its own, one token of the model's vocabulary, so that all its bytes are predicted,
by every model from the same text before them. Knows nothing about files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from ssd_diffusion.errors import TrainingError
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.tokenizer import Tokenizer
from ssd_diffusion.training.evaluate import next_token_losses

MOST_BYTES = 800
"""Of a text; a token is a byte at least, so no text is longer than this many tokens and its start."""


@dataclass(frozen=True, slots=True)
class PerByte:
    """Next-token loss of a model on some texts.

    Attributes:
        nats_per_byte: the mean over all bytes.
        error: its standard error over the texts.
        texts, bytes, tokens: how much was scored.
    """

    nats_per_byte: float
    error: float
    texts: int
    bytes: int
    tokens: int

    def as_json(self) -> dict[str, float]:
        """Plain values, rounded."""
        rounded = {"nats_per_byte": round(self.nats_per_byte, 4), "error": round(self.error, 4)}
        return rounded | {"texts": self.texts, "bytes": self.bytes, "tokens": self.tokens}


def openings(texts: Iterable[str], *, most: int, most_bytes: int = MOST_BYTES) -> list[str]:
    """The beginnings of the first texts that are not empty, cut between characters.

    Raises:
        TrainingError: there is none.
    """
    found: list[str] = []
    for text in texts:
        if len(found) == most:
            break
        opening = text.encode("utf-8", "replace")[:most_bytes].decode("utf-8", "ignore")
        if opening.strip():
            found.append(opening)
    if not found:
        raise TrainingError("there is no text to score; name files that hold some")
    return found


def score(
    model: Ssd2Model, tokenizer: Tokenizer, texts: Sequence[str], *, start: int,
    on_fraction: Callable[[float], None] = lambda _: None,
) -> PerByte:  # fmt: skip
    """Next-token loss per byte.

    Args:
        model: with room for `MOST_BYTES` positions, or as many as the texts need.
        tokenizer: its own.
        texts: what `openings` gave.
        start: the token that stands before each of them.
        on_fraction: told how much is done.
    """
    was_training = model.training
    model.eval()
    losses, sizes, tokens = [], [], 0
    for number, text in enumerate(texts, 1):
        ids = torch.tensor([[start, *tokenizer.encode(text).tolist()]], device=model.w_diff.weight.device)
        losses.append(float(next_token_losses(model, ids).double().sum()))
        sizes.append(len(text.encode()))
        tokens += ids.shape[1] - 1
        on_fraction(number / len(texts))
    model.train(was_training)
    mean = sum(losses) / sum(sizes)
    return PerByte(mean, _error(losses, sizes, mean), len(texts), sum(sizes), tokens)


def _error(losses: Sequence[float], sizes: Sequence[int], mean: float) -> float:
    """Standard error of a ratio of sums; 0 for a single text."""
    count = len(losses)
    squares = sum((loss - mean * size) ** 2 for loss, size in zip(losses, sizes, strict=True))
    return math.sqrt(squares * count / max(1, count - 1)) / sum(sizes)
