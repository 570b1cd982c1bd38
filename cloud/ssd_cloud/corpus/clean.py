"""Makes texts fit to train on, or says why one is left out: Unicode, blanks, boilerplate, language, repetition.

Everything is decided by counting, with the thresholds below. Knows nothing about files or sources.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ssd_diffusion.training.reading import COMMON_WORDS

from ssd_cloud.corpus.model import Document

LEAST_COMMON_SHARE = 0.18  # of words; English prose has about 0.4, lists of names and other languages under 0.1
LEAST_LETTER_SHARE = 0.68  # letters among what is not blank; tables and code have less
MOST_REPEATED_SHARE = 0.3  # lines that stand in the text before
LEAST_NEW_SHARE = 0.45  # distinct five-word runs among all of them
BOILERPLATE_SHARE, BOILERPLATE_LEAST = 0.04, 12  # of a source's documents that hold a line; at least so many
_BOILERPLATE_CHARS = 12
_DROPPED = re.compile("[\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u2064\ufeff\ufffd\ufff9-\uffff]")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ue000-\uf8ff]")
_NOTICE = re.compile(r"\W*(Copyright )?(©|\(c\)|\(C\)) ?(Copyright )?[0-9]{4}")
_ADDRESS = re.compile(r"\W*https?://\S+\W*$")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")


@dataclass(frozen=True, slots=True)
class Cleaned:
    """The documents that stay, in order, and how many were left out for which reason."""

    documents: tuple[Document, ...]
    dropped: dict[str, int]


def clean(documents: Iterable[Document], *, least_chars: int) -> Cleaned:
    """Clean the documents of one source.

    Args:
        documents: as extracted.
        least_chars: shorter ones are left out.
    """
    texts = [Document(one.name, normalize(one.text)) for one in documents]
    stock = boilerplate([one.text for one in texts])
    kept: list[Document] = []
    dropped: Counter[str] = Counter()
    for one in texts:
        text = without_lines(one.text, stock)
        reason = "too short" if len(text) < least_chars else fault(text)
        if reason:
            dropped[reason] += 1
        else:
            kept.append(Document(one.name, text))
    return Cleaned(tuple(kept), dict(sorted(dropped.items())))


def normalize(text: str) -> str:
    """NFC, plain blanks and line ends, no control and no invisible characters, at most one empty line in a row."""
    text = unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode("utf-8"))
    text = _DROPPED.sub("", text.replace("\u00a0", " ").replace("\u2028", "\n"))
    text = _CONTROL.sub(" ", text)
    lines = []
    for line in text.replace("\t", "    ").split("\n"):
        indent = "    " if line.startswith("    ") else ""
        lines.append(indent + re.sub(r" {2,}", " ", line.strip()) if not indent else line.rstrip())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


def boilerplate(texts: Sequence[str]) -> frozenset[str]:
    """Lines that so many documents share that they say nothing of any: navigation, notices, footers."""
    seen: Counter[str] = Counter()
    for text in texts:
        seen.update({line.strip() for line in text.split("\n") if len(line.strip()) >= _BOILERPLATE_CHARS})
    most = max(BOILERPLATE_LEAST, BOILERPLATE_SHARE * len(texts))
    return frozenset(line for line, count in seen.items() if count > most)


def without_lines(text: str, lines: frozenset[str]) -> str:
    """The text without these lines, notices of copyright and bare addresses, and without headings over nothing."""
    own = (line for line in text.split("\n") if not _NOTICE.match(line) and not _ADDRESS.match(line))
    kept = "\n".join(line for line in own if line.strip() not in lines)
    kept = re.sub(r"(?m)^#+ [^\n]*\n+(?=#+ )", lambda m: m[0] if m[0].startswith("# ") else "", kept)
    kept = re.sub(r"\n+#+ [^\n]*\s*\Z", "", kept)
    return re.sub(r"\n{3,}", "\n\n", kept).strip("\n")


def fault(text: str) -> str:
    """Why a text is not fit to train on, or "" when it is."""
    words = _WORD.findall(text.lower())
    if not words or sum(w in COMMON_WORDS for w in words) < LEAST_COMMON_SHARE * len(words):
        return "not English prose"
    if sum(map(len, words)) < LEAST_LETTER_SHARE * sum(map(len, text.split())):
        return "mostly code or tables"
    lines = [line for line in text.split("\n") if len(line) > 20]
    if len(lines) > 4 and len(lines) - len(set(lines)) > MOST_REPEATED_SHARE * len(lines):
        return "repeats itself"
    runs = len(words) - 4
    if runs > 40 and len(set(zip(*(words[i:] for i in range(5)), strict=False))) < LEAST_NEW_SHARE * runs:
        return "repeats itself"
    return ""
