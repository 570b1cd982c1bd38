"""Readable text of a page of HTML, or of a Mallard page: headings as Markdown, lists with "- ", short code indented.

Navigation, scripts, long code and tables of data are left out. Built on lxml, which reads broken markup as browsers do.
Knows nothing about where a page comes from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import lxml.etree
import lxml.html
from ssd_diffusion.training.words import words

from ssd_cloud.corpus.model import Document

CODE_LINES = 12
_CELL_CHARS = 60  # tables whose cells are longer hold prose
_HIDDEN = frozenset(
    words(
        "script style noscript template svg math head iframe object form button nav header footer aside sup "
        "info links media comment"
    )
)
_BLOCKS = frozenset(
    words(
        "p div section article main blockquote figure figcaption dl ul ol body html address center page note "
        "steps terms list"
    )
)
_ITEMS = frozenset(["li", "dt", "dd", "item"])
_UNWANTED = re.compile(
    r"\b(nav(header|footer|bar)?|sphinxsidebar\w*|related|toc|sidebar\w*|headerlink|footer|header|breadcrumbs?|"
    r"menu\w*|index(term|able)|legalnotice|copyright|sourcelink|footnote\w*|doc-nav\w*|nav-\w+|src\w*|searchbox|"
    r"fancy_title|fancy_toc|docnav|viewcode-link|copiable-link|copiable-anchor|categories\w*|categorybox|apidoc|quickview|toplang|bottomlang|permalink)\b"
)
_MAIN = (
    "//main", "//*[@role='main']", "//*[@id='content-wrap']", "//div[@id='page-content']", "//div[@class='body']",
    "//div[@id='DisplayArea']", "//article",
)  # fmt: skip


def html(name: str, data: bytes) -> Iterator[Document]:
    """The page's text as one document.

    Args:
        name: of the member.
        data: the page, in UTF-8 or in the encoding that it declares.
    """
    if not data.strip():
        return
    try:
        root = lxml.html.document_fromstring(data, parser=lxml.html.HTMLParser(encoding=_encoding(data)))
    except (lxml.etree.ParserError, lxml.etree.XMLSyntaxError):
        return
    yield Document(name, page_text(root))


def mallard(name: str, data: bytes) -> Iterator[Document]:
    """A page of GNOME's help, which is XML whose titles are called `title`; code of several lines is a block."""
    parser = lxml.etree.XMLParser(resolve_entities=False, no_network=True, recover=True, remove_comments=True)
    root = lxml.etree.fromstring(data, parser)
    if root is None:
        return
    for element in root.iter():
        if isinstance(element.tag, str):
            tag = lxml.etree.QName(element).localname
            code = "pre" if "\n" in "".join(element.itertext()).strip() else "tt"
            element.tag = {"title": "h2", "code": code, "screen": "pre"}.get(tag, tag)
    first = root.find("h2")
    if first is not None:
        first.tag = "h1"
    yield Document(name, _tidy("".join(_text(root))))


def page_text(root: Any) -> str:
    """Text of a parsed page: of its main part where one is marked, else of the body."""
    for path in _MAIN:
        found = root.xpath(path)
        if found and len(found[0].text_content()) > 200:
            return _tidy("".join(_text(found[0])))
    return _tidy("".join(_text(root)))


def _encoding(data: bytes) -> str:
    declared = re.search(rb"charset\s*=\s*[\"']?([A-Za-z0-9_-]{2,20})", data[:2048])
    name = declared[1].decode("ascii").lower() if declared else "utf-8"
    return name if name in ("utf-8", "iso-8859-1", "us-ascii", "windows-1252") else "utf-8"


def _text(element: Any) -> Iterator[str]:
    """Pieces of an element's text, its tail not included."""
    tag = element.tag
    if not isinstance(tag, str) or tag in _HIDDEN or _unwanted(element):
        return
    if tag == "pre":
        yield _code(element)
        return
    if tag == "table" and not _is_prose(element):
        yield "\n\n"
        return
    before, after = _around(tag)
    yield before
    yield _flat(element.text)
    for child in element:
        yield from _text(child)
        yield _flat(child.tail)
    yield after


def _around(tag: str) -> tuple[str, str]:
    if re.fullmatch("h[1-6]", tag):
        return "\n\n" + "#" * int(tag[1]) + " ", "\n\n"
    if tag in _ITEMS:
        return ("\n", "\n") if tag in ("dt", "dd") else ("\n- ", "\n")
    if tag in ("tr", "br"):
        return "\n", ""
    if tag in ("td", "th"):
        return "\n", "\n"
    return ("\n\n", "\n\n") if tag in _BLOCKS or tag == "table" else ("", "")


def _unwanted(element: Any) -> bool:
    if element.get("class") == "MAC":  # the same words again, for another system
        return True
    names = f"{element.get('class') or ''} {element.get('id') or ''}"
    return names != " " and bool(_UNWANTED.search(names.lower())) and element.tag not in ("body", "html")


def _code(element: Any) -> str:
    lines = "".join(element.itertext()).expandtabs(4).strip("\n").splitlines()
    if len(lines) > CODE_LINES:
        return "\n\n"
    return "\n\n" + "\n".join("    " + line.rstrip() for line in lines) + "\n\n"


def _is_prose(table: Any) -> bool:
    cells = [len(" ".join("".join(cell.itertext()).split())) for cell in table.iter("td")]
    return bool(cells) and sum(cells) / len(cells) >= _CELL_CHARS


def _flat(text: str | None) -> str:
    return re.sub(r"\s+", " ", text) if text else ""


def _tidy(text: str) -> str:
    lines = (line.rstrip() if line.startswith("    ") else line.strip() for line in text.split("\n"))
    kept = [line for line in lines if not re.fullmatch(r"#+", line.strip())]
    joined = re.sub(r"(?m)^: +(?=\S)", "", "\n".join(kept))  # a described name whose kind is empty
    joined = re.sub(r"(?m)^-\n+(?=[^\s-])", "- ", joined)  # a paragraph within its item
    joined = re.sub(r"(?m)^-$\n?", "", joined)
    joined = re.sub(r"(?m)^(- [^\n]*)\n{2,}(?=- )", r"\1\n", joined)
    return re.sub(r"\n{3,}", "\n\n", joined).strip()
