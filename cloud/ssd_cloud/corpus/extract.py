"""From an archive to documents and questions: which reader takes which form, and long texts cut at their headings.

Knows nothing about fetching or cleaning.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator
from pathlib import Path

from ssd_cloud.corpus import extract_data, extract_html, extract_text
from ssd_cloud.corpus.archive import members
from ssd_cloud.corpus.model import Document, Extracted, Question, Source
from ssd_cloud.errors import DataError

LONGEST_CHARS = 24_000
Reader = Callable[[str, bytes], Iterator[Document | Question]]

READERS: dict[str, Reader] = {
    "html": extract_html.html,
    "mallard": extract_html.mallard,
    "plain": extract_text.plain,
    "markdown": extract_text.markdown,
    "rst": extract_text.rst,
    "pod": extract_text.pod,
    "dictionary": extract_data.dictionary,
    "r": extract_data.r_data,
    "leads": extract_data.leads,
    "bank": extract_data.bank,
    "mail": extract_data.mail,
    "yes-no": extract_data.yes_no,
    "stories": extract_data.stories,
    "dialogues": extract_data.dialogues,
    "open-questions": extract_data.open_questions,
}


def extract(source: Source, archive: Path) -> Extracted:
    """Everything that a source's archive holds, in the order of names.

    Raises:
        DataError: the archive is damaged, or nothing in it matches.
    """
    documents: list[Document] = []
    questions: list[Question] = []
    found = sorted(members(archive, source.files, source.without))
    root = posixpath.commonpath([posixpath.dirname(name) for name, _ in found]) if found else ""
    for name, data in found:
        for item in READERS[source.form](posixpath.relpath(name, root or "."), data):
            if isinstance(item, Document):
                documents += pieces(item)
            else:
                questions.append(item)
    if not documents and not questions:
        raise DataError(f"{archive.name} holds nothing of what {source.name} needs; the package has changed")
    return Extracted(tuple(documents), tuple(questions))


def pieces(document: Document) -> list[Document]:
    """A long document cut before headings, else between paragraphs, into parts of at most about 24,000 characters."""
    if len(document.text) <= LONGEST_CHARS:
        return [document]
    parts: list[str] = []
    held = ""
    for block in document.text.split("\n\n"):
        full = len(held) + len(block) > LONGEST_CHARS
        if held and (full or (block.startswith("#") and len(held) > LONGEST_CHARS // 2)):
            parts.append(held)
            held = ""
        held = f"{held}\n\n{block}" if held else block
    parts.append(held)
    return [Document(f"{document.name}#{i}", part) for i, part in enumerate(parts, 1)]
