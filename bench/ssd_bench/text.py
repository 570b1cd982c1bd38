"""Scores of generated text: exact match, token F1, whether a fact is in it, distinct-n, repetition, entropy, Zipf.

Normalisation as SQuAD's evaluation has it: lower case, no punctuation, no articles, single spaces. Knows nothing about
models or tokenizers; a token here is a word of the normalised text, or any sequence element for the last four.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_APOSTROPHES = re.compile(r"['’`]")


def normalise(text: str) -> str:
    """Lower case without punctuation and articles, words separated by single spaces.

    Digits keep a point or comma between them ("1,250.50"); the comma of thousands goes.
    """
    text = unicodedata.normalize("NFKC", text).lower()
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    text = _APOSTROPHES.sub("", text)
    kept = "".join(c if c.isalnum() or c.isspace() or _inside_number(text, i) else " " for i, c in enumerate(text))
    return " ".join(_ARTICLES.sub(" ", kept).split())


def _inside_number(text: str, i: int) -> bool:
    return text[i] in ".:" and 0 < i < len(text) - 1 and text[i - 1].isdigit() and text[i + 1].isdigit()


def contains(prediction: str, accepted: Iterable[str]) -> bool:
    """True when an accepted answer stands in the prediction, whole words, after normalisation."""
    said = f" {normalise(prediction)} "
    wanted = [normalise(answer) for answer in accepted]
    return any(answer and f" {answer} " in said for answer in wanted)


def token_f1(prediction: str, accepted: Iterable[str]) -> float:
    """Largest F1 of word overlap with an accepted answer."""
    return max((_f1(normalise(prediction).split(), normalise(answer).split()) for answer in accepted), default=0.0)


def _f1(said: list[str], wanted: list[str]) -> float:
    if not said or not wanted:
        return float(said == wanted)
    shared = sum((Counter(said) & Counter(wanted)).values())
    return 2 * shared / (len(said) + len(wanted))


def distinct_n(sequences: Iterable[Sequence[Hashable]], n: int) -> float:
    """Share of n-grams that are different, over all sequences together; 0 where there is no n-gram."""
    grams = [tuple(s[i : i + n]) for s in sequences for i in range(len(s) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repeated_n(sequence: Sequence[Hashable], n: int) -> float:
    """Share of a sequence's n-grams that stood in it before; 0 where there is no n-gram."""
    return 1 - distinct_n([sequence], n) if len(sequence) >= n else 0.0


def zipf_coefficient(sequences: Iterable[Sequence[Hashable]]) -> float:
    """Slope s of log frequency = a - s log rank over all tokens, least squares (Holtzman et al., 2020); 0 for one kind.

    Ranks by frequency; near 1 for natural text.
    """
    counts = sorted(Counter(token for s in sequences for token in s).values(), reverse=True)
    if len(counts) < 2:
        return 0.0
    x = [math.log(rank) for rank in range(1, len(counts) + 1)]
    y = [math.log(count) for count in counts]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return -sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def unigram_entropy(sequences: Iterable[Sequence[Hashable]]) -> float:
    """Entropy of the tokens' own frequencies, nats; 0 where there is none."""
    counts = Counter(token for s in sequences for token in s)
    total = sum(counts.values())
    return -sum(c / total * math.log(c / total) for c in counts.values()) if total else 0.0
