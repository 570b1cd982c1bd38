"""Documents into passages: short stretches of text that stand on their own, under the headings they come from.

A passage never spans two headings, ends at a paragraph or a sentence where it can, and is an exact slice of its
document. Knows nothing about retrieval.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ssd_client.documents.ingest import Document

MAX_CHARS = 500
_HEADING = re.compile(r"^(#{1,6})[ \t]+(\S.*?)[ \t]*#*$")
_UNDERLINE = re.compile(r"^([=\-~^\"'`#*+.:_])\1{2,}[ \t]*$")
_SENTENCE = re.compile(r"(?<=[.!?…。！？])[\"'”’)\]]*\s+")
_FENCE = re.compile(r"^\s{0,3}(```|~~~)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A stretch of a document.

    Attributes:
        document_id, path, title: of the document.
        heading: the headings above it, outermost first, joined by " > "; "" where there are none.
        text: `document.text[start:end]`.
        start, end: character offsets in the document's text.
    """

    document_id: str
    path: str
    title: str
    heading: str
    text: str
    start: int
    end: int

    @property
    def full_text(self) -> str:
        """ "title > heading: text", as it goes into a context and an encoder."""
        return f"{place(self.title, self.heading)}: {self.text}"


def place(title: str, heading: str) -> str:
    """ "title > heading"; the title once where the outermost heading repeats it."""
    parts = [one for one in heading.split(" > ") if one]
    if parts and parts[0] == title:
        parts = parts[1:]
    return " > ".join([title, *parts])


def split(document: Document, *, max_chars: int = MAX_CHARS) -> list[Passage]:
    """The passages of a document, in order, each at most `max_chars` characters (about a quarter as many tokens).

    Raises:
        ValueError: max_chars is below 1.
    """
    if max_chars < 1:
        raise ValueError("max_chars must be at least 1")
    passages = []
    for heading, start, end in _sections(document):
        for begin, stop in _slices(document.text, start, end, max_chars):
            passages.append(
                Passage(
                    document_id=document.id,
                    path=document.path,
                    title=document.title,
                    heading=heading,
                    text=document.text[begin:stop],
                    start=begin,
                    end=stop,
                )
            )
    return passages


def _sections(document: Document) -> Iterator[tuple[str, int, int]]:
    """(heading path, start, end) of the text under each heading."""
    if document.format not in ("markdown", "rst", "html", "docx"):
        yield "", 0, len(document.text)
        return
    stack: list[tuple[int, str]] = []
    styles: list[str] = []
    start = 0
    for level, title, begin, end in _headings(document.text, document.format, styles):
        yield " > ".join(one for _, one in stack), start, begin
        while stack and stack[-1][0] >= level:
            stack.pop()
        stack.append((level, title))
        start = end
    yield " > ".join(one for _, one in stack), start, len(document.text)


def _headings(text: str, form: str, styles: list[str]) -> Iterator[tuple[int, str, int, int]]:
    """(level, title, start, end) of the heading lines; underline styles of reStructuredText rank as they appear."""
    previous, previous_start, position, fenced = "", 0, 0, False
    for line in text.splitlines(keepends=True):
        bare = line.rstrip("\n")
        if form == "markdown" and _FENCE.match(bare):
            fenced = not fenced
        found = None if form == "rst" or fenced else _HEADING.match(bare)
        under = _UNDERLINE.match(bare) if form in ("markdown", "rst") and not fenced else None
        if found:
            yield len(found[1]), found[2], position, position + len(line)
        elif under and _is_title(previous, bare, form) and (form == "rst" or bare[0] in "=-"):
            if bare[0] not in styles:
                styles.append(bare[0])
            level = styles.index(bare[0]) + 1 if form == "rst" else "=-".index(bare[0]) + 1
            yield level, previous.strip(), previous_start, position + len(line)
            bare = ""
        previous, previous_start = bare, position
        position += len(line)


def _is_title(line: str, underline: str, form: str) -> bool:
    plain = bool(line.strip()) and not _UNDERLINE.match(line) and not line.startswith((" ", "-", "*", ">", "|", "#"))
    return plain and (form == "markdown" or len(underline.rstrip()) >= len(line.rstrip()))


def _slices(text: str, start: int, end: int, max_chars: int) -> Iterator[tuple[int, int]]:
    """Slices of text[start:end]: paragraphs put together up to `max_chars`, longer ones cut at sentences."""
    pending: tuple[int, int] | None = None
    for begin, stop in _paragraphs(text, start, end):
        if pending is not None and stop - pending[0] <= max_chars:
            pending = (pending[0], stop)
            continue
        if pending is not None:
            yield pending
        pending = None
        *full, last = _cut(text, begin, stop, max_chars)
        yield from full
        pending = last
    if pending is not None:
        yield pending


def _paragraphs(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Runs of lines that are not blank, without the space around them; runs without a word are left out."""
    begin: int | None = None
    position = start
    for line in [*text[start:end].splitlines(keepends=True), ""]:
        if line.strip():
            begin = position if begin is None else begin
        elif begin is not None:
            stripped = text[begin:position].strip()
            if re.search(r"\w", stripped):
                left = begin + text[begin:position].index(stripped[0])
                yield left, left + len(stripped)
            begin = None
        position += len(line)


def _cut(text: str, start: int, end: int, max_chars: int) -> list[tuple[int, int]]:
    """A paragraph in slices: at the last sentence that fits, else the last line or space, else anywhere."""
    slices = []
    while end - start > max_chars:
        window = text[start : start + max_chars + 1]
        cuts = (
            max((found.end() for found in _SENTENCE.finditer(window) if found.end() <= max_chars), default=0),
            window.rfind("\n"),
            window.rfind(" "),
        )
        cut = next((one for one in cuts if one >= max_chars // 4 and one > 0), max_chars)
        slices.append((start, start + len(window[:cut].rstrip())))
        start += cut
        while text[start].isspace():
            start += 1
    slices.append((start, end))
    return slices
