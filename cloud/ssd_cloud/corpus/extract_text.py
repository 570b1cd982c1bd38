"""Readable text of plain text, Markdown, reStructuredText and POD: headings as Markdown, lines joined to paragraphs.

Each reads what its form needs and no more: it is text for a language model, not a page to lay out. Code of more than a
few lines, tables and directives without prose are left out. Knows nothing about where a text comes from.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

from ssd_diffusion.training.words import words

from ssd_cloud.corpus.extract_html import CODE_LINES
from ssd_cloud.corpus.model import Document

_BULLET = re.compile(r"^\s*(?:[-*+•]|\(?\d{1,3}[.)]|\(?[a-z][.)]|#\.)\s+")
_UNDERLINE = re.compile(r"^([=\-~^\"'#*+.:_`])\1{2,}\s*$")


def decode(data: bytes) -> str:
    """Text of bytes: UTF-8, else Windows-1252, which takes any byte."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", "replace")
    return text.replace("\r\n", "\n").replace("\r", "\n").expandtabs(8)


def join_lines(text: str) -> str:
    """Paragraphs whose lines were cut at a width as single lines; lists, headings and indented code stay apart."""
    out = []
    for block in re.split(r"\n\s*\n", text):
        lines = [line.rstrip() for line in block.split("\n") if line.strip()]
        if not lines:
            continue
        if all(line.startswith("    ") for line in lines):
            if len(lines) <= CODE_LINES:
                out.append("\n".join(lines))
            continue
        joined: list[str] = []
        for line in lines:
            if joined and not _BULLET.match(line) and not line.startswith("#") and not joined[-1].startswith("#"):
                joined[-1] += " " + line.strip()
            else:
                joined.append(line.strip())
        out.append("\n".join(joined))
    return "\n\n".join(out)


def plain(name: str, data: bytes) -> Iterator[Document]:
    """A text whose lines are paragraphs already."""
    lines = (line.strip() for line in decode(data).split("\n"))
    yield Document(name, re.sub(r"\n{3,}", "\n\n", "\n".join(lines)))


def markdown(name: str, data: bytes) -> Iterator[Document]:
    """Markdown without its links, images and emphasis."""
    text = re.sub(r"```.*?```", "", decode(data), flags=re.S)
    text = re.sub(r"<!--.*?-->|!\[[^\]]*\]\([^)]*\)", "", text, flags=re.S)
    text = re.sub(r"\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(\s*[^()\s]*(?:\([^()]*\)[^()\s]*)*\s*\)", r"\1", text)
    text = re.sub(r"\[([^\[\]]+)\]\[[^\]]*\]", r"\1", text)
    text = re.sub(r"^\[[^\]]+\]:\s+\S.*$", "", text, flags=re.M)
    text = re.sub(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1", r"\2", text, flags=re.S)
    text = re.sub(r"(?<![\w*])[*_](?=\S)([^*_\n]+(?:\n[^*_\n]+)*)(?<=\S)[*_](?![\w*])", r"\1", text)
    text = re.sub(r"^> ?", "", text, flags=re.M)
    text = re.sub(r"\\([\\`*_{}\[\]()#+.!<>\"'-])", r"\1", text)
    yield Document(name, join_lines(re.sub(r"(?m)^(#+ .*)$", r"\n\1\n", text)))


_BODIES = frozenset(
    words(
        "note warning tip important caution hint attention seealso versionadded versionchanged deprecated "
        "admonition function method class attribute exception data classmethod staticmethod decorator opcode "
        "option cmdoption describe object envvar module macro type var member setting confval topic epigraph "
        "sidebar rubric c:function c:macro c:type c:member c:var c:struct py:function py:method py:class "
        "py:attribute py:data"
    )
)
_DIRECTIVE = re.compile(r"^(\s*)\.\.\s+(?:\|[^|]*\|\s+)?([A-Za-z][\w:+.-]*)::\s*(.*)$")
_ROLE = re.compile(r":[A-Za-z][\w:+.-]*:`(?:!|~)?([^`<]*?)(?:\s*<[^`>]*>)?`")


def rst(name: str, data: bytes) -> Iterator[Document]:
    """reStructuredText: headings, paragraphs, the bodies of notes and of described functions."""
    lines = [line.rstrip() for line in decode(data).split("\n")]
    yield Document(name, join_lines(_rst_inline("\n".join(_rst_lines(lines)))))


def _rst_lines(lines: list[str]) -> Iterator[str]:
    at = 0
    while at < len(lines):
        line = lines[at]
        following = lines[at + 1] if at + 1 < len(lines) else ""
        if found := _DIRECTIVE.match(line):
            end = _block_end(lines, at + 1, len(found[1]))
            if found[2].lower() in _BODIES:
                yield from _rst_body(found[3], lines[at + 1 : end], found[2])
            at = end
        elif re.match(r"^\s*\.\.(\s|$)", line):  # a comment, a target, a footnote
            at = _block_end(lines, at + 1, len(line) - len(line.lstrip()))
        elif _UNDERLINE.match(line) and following and _UNDERLINE.match(lines[at + 2] if at + 2 < len(lines) else ""):
            yield from ("", "# " + following.strip(), "")
            at += 3
        elif line.strip() and _UNDERLINE.match(following) and len(following) >= len(line.strip()) > 1:
            yield from ("", ("# " if following[0] in "=#*" else "## ") + line.strip(), "")
            at += 2
        elif re.match(r"^\s*(\+[-=+]+\+|\|.*\||=+(\s+=+)+)\s*$", line):
            at = _table_end(lines, at)
        elif line.endswith("::"):
            yield line[:-1] if line.strip() != "::" else ""
            end = _block_end(lines, at + 1, len(line) - len(line.lstrip()))
            yield from _short_code(lines[at + 1 : end])
            at = end
        else:
            if not re.match(r"^\s*:[\w ./-]+:(\s|$)", line):
                line = re.sub(r"^(\s*)(#\.|\*)\s", r"\1- ", line)
                yield "    " + line.strip() if line.lstrip().startswith(">>>") else line
            at += 1


def _rst_body(argument: str, body: list[str], directive: str) -> Iterator[str]:
    width = min((len(line) - len(line.lstrip()) for line in body if line.strip()), default=0)
    yield ""
    if directive.startswith(("version", "deprecated")):
        words = {"versionadded": "New in version", "versionchanged": "Changed in version"}
        yield f"{words.get(directive, 'Deprecated since version')} {argument}".strip()
    elif argument:
        yield argument
        yield ""
    yield from _rst_lines([line[width:] for line in body])
    yield ""


def _short_code(body: list[str]) -> Iterator[str]:
    used = [line for line in body if line.strip()]
    if 0 < len(used) <= CODE_LINES:
        width = min(len(line) - len(line.lstrip()) for line in used)
        yield ""
        yield from ("    " + line[width:] for line in used)
        yield ""


def _block_end(lines: list[str], at: int, indent: int) -> int:
    """The first line from `at` on that is not blank and not indented deeper."""
    while at < len(lines) and (not lines[at] or len(lines[at]) - len(lines[at].lstrip()) > indent):
        at += 1
    return at


def _table_end(lines: list[str], at: int) -> int:
    if lines[at].lstrip().startswith("="):
        ends = [i for i in range(at + 1, min(at + 400, len(lines))) if re.match(r"^\s*=+(\s+=+)*\s*$", lines[i])]
        last = next((i for i in ends if i + 1 >= len(lines) or not lines[i + 1].strip()), None)
        return (last if last is not None else at) + 1
    while at < len(lines) and lines[at].strip().startswith(("+", "|")):
        at += 1
    return at


def _rst_inline(text: str) -> str:
    text = re.sub(r":pep:`(\d+)`", r"PEP \1", text)
    text = re.sub(r":(?:issue|bpo|ticket):`(\d+)`", r"issue \1", text)
    text = _ROLE.sub(r"\1", text)
    text = re.sub(r"``(.+?)``", r"\1", text, flags=re.S)
    text = re.sub(r"`([^`<]+?)\s*<[^`>]*>`__?", r"\1", text)
    text = re.sub(r"`([^`]+)`_{0,2}", r"\1", text)
    text = re.sub(r"(?<!\w)\*\*(?=\S)([^*]+)(?<=\S)\*\*", r"\1", text)
    text = re.sub(r"(?<![\w*])\*(?=\S)([^*\n]+)(?<=\S)\*(?![\w*])", r"\1", text)
    text = re.sub(r"(?<![\w.])([A-Za-z0-9][A-Za-z0-9-]*)_{1,2}(?=[\s.,;:)])", r"\1", text)
    text = re.sub(r"\|\w+\||\[(\w+|#\w*)\]_", "", text)
    return re.sub(r"\\(?=[^\w\s])", "", text)


_POD_CODE = re.compile(r"([A-Z])<(?:<<\s+(.*?)\s+>>|<\s+(.*?)\s+>|([^<>]*))>", re.S)
_POD_NAMES = {"lt": "<", "gt": ">", "verbar": "|", "sol": "/", "amp": "&", "quot": '"'}


def pod(name: str, data: bytes) -> Iterator[Document]:
    """Perl's documentation."""
    out: list[str] = []
    skipping = False
    for block in re.split(r"\n[ \t]*\n", decode(data)):
        block = block.strip("\n")
        if skipping:
            skipping = not block.startswith("=end")
        elif block.startswith("=begin"):
            skipping = True
        elif found := re.match(r"=head(\d)\s+(.*)", block, re.S):
            out.append("#" * int(found[1]) + " " + " ".join(found[2].split()))
        elif found := re.match(r"=item\s*(.*)", block, re.S):
            words = re.sub(r"^(\*|\d+\.?)(?=\s|$)", "", " ".join(found[1].split())).strip()
            out.append("- " + words)
        elif block.startswith("=") or not block.strip():
            continue
        elif block[0] in " \t":
            if out and out[-1] == "- ":  # an item that is code alone needs no mark
                out.pop()
            out.append(textwrap.indent(textwrap.dedent(block), "    "))
        elif out and out[-1] == "- ":
            out[-1] += " ".join(block.split())
        else:
            out.append(block)
    yield Document(name, join_lines("\n\n".join(_pod_codes(block) for block in out)))


def _pod_codes(text: str) -> str:
    for _ in range(5):  # codes may stand inside codes
        changed = _POD_CODE.sub(_pod_code, text)
        if changed == text:
            break
        text = changed
    return text.replace("\ue000", "<").replace("\ue001", ">")


def _pod_code(found: re.Match[str]) -> str:
    inside = next((part for part in found.groups()[1:] if part is not None), "")
    if found[1] == "E":
        named = _POD_NAMES.get(inside, "")
        return named.replace("<", "\ue000").replace(">", "\ue001")
    if found[1] in "XZ":
        return ""
    if found[1] == "L":
        return inside.split("|")[0] if "|" in inside else inside.strip("/").replace("/", ", ")
    return inside.replace("<", "\ue000").replace(">", "\ue001")
