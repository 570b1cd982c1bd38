"""Documents and questions from files of records: dictionaries, R's data, JSON and JSON lines, mails.

R's compressed objects are read as bytes by their published layout; nothing is unpickled or run. A file that is not laid
out as it should be is an error, so that a changed package is noticed. Knows nothing about licences or cleaning.
"""

from __future__ import annotations

import ast
import json
import re
import struct
import unicodedata
import zlib
from collections.abc import Iterator
from email import policy
from email.parser import BytesParser
from typing import Any

from ssd_cloud.corpus.extract_text import decode, join_lines
from ssd_cloud.corpus.model import Document, Question
from ssd_cloud.errors import DataError

_PAGE_CHARS = 2500
_ACCENTS = {"'": "\u0301", "`": "\u0300", "^": "\u0302", '"': "\u0308", "=": "\u0304", "~": "\u0303", ",": "\u0327"}
_LETTERS = {
    "ae": "æ", "AE": "Æ", "oe": "œ", "OE": "Œ", "eth": "ð", "thorn": "þ", "yogh": "ȝ", "imac": "ī", "aum": "ä",
    "deg": "°", "sect": "§", "root": "√", "alpha": "α", "beta": "β", "gamma": "γ", "pi": "π", "phi": "φ", "rho": "ρ",
}  # fmt: skip
_CHARACTER_VECTOR, _STRING, _MISSING = 16, 9, 0xFFFFFFFF


def dictionary(name: str, data: bytes) -> Iterator[Document]:
    """Pages of a dictd database: neighbouring entries, up to about 2,500 characters; the entries on it name a page."""
    page: list[str] = []
    first = ""
    for head, entry in dictionary_entries(decode(data)):
        first = first or head
        page.append(entry)
        if sum(map(len, page)) >= _PAGE_CHARS:
            yield Document(f"{name}: {first}", "\n\n".join(page))
            page, first = [], ""
    if page:
        yield Document(f"{name}: {first}", "\n\n".join(page))


def dictionary_entries(text: str) -> Iterator[tuple[str, str]]:
    """Headword and entry, without the marks of pronunciation and of sources."""
    for block in re.split(r"\n(?=\S)", text):
        head, _, body = block.partition("\n")
        if head.startswith("00-database") or not head.strip():
            continue
        word, etymology = _headword(head)
        body = re.sub(r"\[(1913 Webster|PJC|WordNet 1\.5|Webster 1913 Suppl\.|RP|AS|Century[^\]]*|Webster Suppl[^\]]*)"
                      r"[^\]]*\]", "", body)  # fmt: skip
        body = re.sub(r"\((?:19|20)\d\d-\d\d-\d\d\)", "", body)
        body = re.sub(r"\\[^\\\n]*\\,?", "", body)
        body = re.sub(r"(?m)^(\s*(?:\d+\. +)?)<[a-z ,/-]{3,40}>\s+", r"\1", body)  # the field that a word belongs to
        body = re.sub(r"\A\s*((?:n|v|vt|vi|adj|adv|excl)\.,? +)?/[^/\n]{2,40}/,?[ \n]", r"\1", body)  # how it is spoken
        body = re.sub(r"[{}]", "", body)
        body = re.sub(r"(?m)^ +", "", body)
        text = join_lines(body)
        if len(text) > 20:
            yield word, _letters(_spoken(_whole_head(f"{word}{etymology}\n{text}")))


def _spoken(entry: str) -> str:
    """An entry without how its word is spoken, which stands in brackets full of signs near its beginning."""
    head, rest = entry[:240], entry[240:]
    return re.sub(r" ?\((?=[^()]*[\[`\"*?#]|-)[^()]*\)(?=,)", "", head) + rest


def _whole_head(entry: str) -> str:
    """An entry whose first line holds all of the brackets that open in it: where the word comes from."""
    head, _, rest = entry.partition("\n")
    end = rest.find("]") + 1
    if head.count("[") <= head.count("]") or not end:
        return entry
    return f"{head} {rest[:end]}\n{rest[end:].lstrip()}".rstrip()


def _letters(entry: str) -> str:
    """An entry whose letters beyond ASCII are written as such: ['e] and [ae] stand for é and æ."""
    entry = re.sub(r"\[([a-zA-Z]+)\]", lambda m: _LETTERS.get(m[1], m[0]), entry)
    entry = re.sub(r"\[([-.*'`^\"=~,])([A-Za-zæ])\]|\[([a-z])\^\]", _accented, entry)
    return unicodedata.normalize("NFC", entry)


def _accented(found: re.Match[str]) -> str:
    """A letter with its accent; the breve and other marks of how a word is spoken are left away."""
    return str(found[2] or found[3]) + _ACCENTS.get(found[1] or "", "")


def _headword(head: str) -> tuple[str, str]:
    word, mark, rest = head.partition("\\")
    after = rest.partition("\\")[2] if mark else ""
    after = re.sub(r" *\\[^\\\n]*\\", "", after)
    return word.strip().replace("{", "").replace("}", ""), re.sub(r"[{}]", "", after).rstrip()


def r_data(name: str, data: bytes) -> Iterator[Document]:
    """The character vectors of an R data file (.rdb), each a book, cut at its chapters."""
    at = number = 0
    while at + 4 < len(data):
        unpacker = zlib.decompressobj()
        try:
            content = unpacker.decompress(data[at + 4 :])
        except zlib.error as error:
            raise DataError(
                f"{name} is not the R data that was expected ({error}); it needs a reader's care"
            ) from error
        at = len(data) - len(unpacker.unused_data)
        lines = _strings(content)
        if len(lines) > 100:
            number += 1
            for part, chapter in enumerate(re.split(r"\n(?=CHAPTER [IVXLC\d]+)", "\n".join(lines)), 1):
                yield Document(f"{name} {number}.{part}", join_lines(chapter))


def _strings(content: bytes) -> list[str]:
    """The strings of a serialized R object, when it is a character vector; else none."""
    if not content.startswith(b"X\n"):
        return []
    version = struct.unpack_from(">i", content, 2)[0]
    at = 14 + (4 + struct.unpack_from(">i", content, 14)[0] if version == 3 else 0)
    flags, count = struct.unpack_from(">Ii", content, at)
    if flags & 0xFF != _CHARACTER_VECTOR:
        return []
    at += 8
    found = []
    for _ in range(count):
        flags, length = struct.unpack_from(">II", content, at)
        at += 8
        if flags & 0xFF != _STRING:
            return []
        size = 0 if length == _MISSING else length
        found.append(content[at : at + size].decode("utf-8", "replace"))
        at += size
    return found


def leads(name: str, data: bytes) -> Iterator[Document]:
    """First paragraphs of encyclopaedia articles, named by their titles."""
    for title, row in sorted(_json(name, data, dict).items()):
        text = str(row.get("extract", "")).strip()
        if text:
            yield Document(title, text)


def bank(name: str, data: bytes) -> Iterator[Document]:
    """Internal documents of the invented bank, with their titles."""
    for row in _json(name, data, list):
        yield Document(str(row["id"]), f"# {row['title']}\n\n{row['content']}")


def mail(name: str, data: bytes) -> Iterator[Document]:
    """One mail: who, when, about what, and its plain text."""
    message = BytesParser(policy=policy.compat32).parsebytes(re.sub(rb"\AFrom [^\n]*\n", b"", data))
    part = next((p for p in message.walk() if p.get_content_type() == "text/plain" and not p.get_filename()), None)
    payload = part.get_payload(decode=True) if part is not None else None
    if not isinstance(payload, bytes):
        return
    heads = [f"{head}: {' '.join(str(message[head]).split())}" for head in ("From", "Date", "Subject") if message[head]]
    yield Document(name, "\n".join(heads) + "\n\n" + decode(payload).strip())


def yes_no(name: str, data: bytes) -> Iterator[Document | Question]:
    """BoolQ: passages with their titles, and questions that are answered by yes or no."""
    for row in _rows(name, data):
        title, _, passage = re.sub("``|''", '"', str(row["passage"])).partition(" -- ")
        if not passage:
            title, passage = "", title
        yield Document(title, passage)
        answer = {"true": "yes", "false": "no"}.get(str(row.get("label")).lower())
        if answer is not None:
            yield Question(str(row["question"]), answer, title, passage)


def stories(name: str, data: bytes) -> Iterator[Document | Question]:
    """NarrativeQA: summaries of stories, and questions with answers in people's own words; the longest is taken."""
    for row in _rows(name, data):
        answers = row["answer"] if isinstance(row["answer"], list) else ast.literal_eval(str(row["answer"]))
        answer = max((str(a).strip() for a in answers), key=len, default="")
        passage = str(row["passage"])
        yield Document("", passage)
        if answer:
            yield Question(str(row["question"]), answer, "", passage)


def dialogues(name: str, data: bytes) -> Iterator[Document | Question]:
    """QuAC: passages, and their questions in order; the first person's answer, "" where the passage has none."""
    for row in _rows(name, data):
        passage = str(row["passage"]).removesuffix("CANNOTANSWER").strip()
        yield Document("", passage)
        questions = re.findall(r"^question\d+: (.+)$", str(row["question"]), re.MULTILINE)
        answers = re.findall(r"^possible answers for question\d+:\n(.+)$", str(row["answer"]), re.MULTILINE)
        for question, answer in zip(questions, answers, strict=False):
            if answer.startswith("CANNOTANSWER"):
                yield Question(question, "", "", passage)
            elif span := _said(answer, passage):
                yield Question(question, span, "", passage)


def _said(answers: str, passage: str) -> str:
    """The first of several answers written one after the other: the longest beginning that stands in the passage."""
    ends = [match.end() for match in re.finditer(r"\S+", answers)]
    low, high = 0, len(ends)
    while low < high:  # a longer beginning stands there only if a shorter one does
        middle = (low + high + 1) // 2
        low, high = (middle, high) if answers[: ends[middle - 1]] in passage else (low, middle - 1)
    return answers[: ends[low - 1]].strip(" ,;") if low else ""


def open_questions(name: str, data: bytes) -> Iterator[Question]:
    """NQ-open: questions that people asked, with short answers and without a passage."""
    for row in _rows(name, data):
        if row["answer"]:
            yield Question(str(row["question"]), str(row["answer"][0]), "", "")


def _json(name: str, data: bytes, form: type[Any]) -> Any:
    try:
        found = json.loads(data)
    except ValueError as error:
        raise DataError(f"{name} is not JSON ({error}); the package is not the one that was expected") from error
    if not isinstance(found, form):
        raise DataError(f"{name} is not laid out as expected; the package is not the one that was expected")
    return found


def _rows(name: str, data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.decode("utf-8", "replace").splitlines():
        if line.strip():
            yield _json(name, line.encode(), dict)
