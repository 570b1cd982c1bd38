"""Text from the bytes of one file: plain text and source, HTML, PDF, Word, mail.

Every function gives text or raises `Skip` with a reason for the user. Knows nothing about folders, databases or
processes; the slow and fragile formats (`needs_worker`) are run by `worker` in a process of its own.
"""

from __future__ import annotations

import codecs
import io
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email import policy
from email.errors import MessageError
from email.message import EmailMessage
from email.parser import BytesParser
from html.parser import HTMLParser
from pathlib import PurePosixPath


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_TEXT = _set("txt text md markdown mdown mkd rst adoc org tex csv tsv log json jsonl yaml yml toml ini cfg conf xml")
_SOURCE = _set(
    "py pyi js mjs cjs ts tsx jsx java kt kts c h cc cpp cxx hpp hh cs go rs rb php pl pm sh bash zsh fish ps1 bat sql "
    "r jl lua swift scala clj ex exs erl hs ml mli f90 f m mm dart vue svelte css scss less proto cmake gradle tf nix "
    "el lisp vb asm s"
)
_HTML = frozenset({"html", "htm", "xhtml"})
_WORKER = {"pdf": "pdf", "docx": "docx", "docm": "docx", "eml": "eml", "mbox": "mbox", "mbx": "mbox"}
_KNOWN_UNREAD = {
    "doc": "an old Word file; save it as .docx",
    "odt": "an OpenDocument file; save it as .docx or .pdf",
    "rtf": "an RTF file; save it as .docx or .txt",
    "xls": "a spreadsheet; save it as .csv",
    "xlsx": "a spreadsheet; save it as .csv",
    "ods": "a spreadsheet; save it as .csv",
    "ppt": "a presentation; save it as .pdf",
    "pptx": "a presentation; save it as .pdf",
    "odp": "a presentation; save it as .pdf",
    "epub": "an e-book; save it as .html or .pdf",
    "msg": "an Outlook mail; save it as .eml",
    "zip": "an archive; unpack it",
    "gz": "an archive; unpack it",
    "7z": "an archive; unpack it",
    "tar": "an archive; unpack it",
}
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_MAX_CONTROL_SHARE = 0.01


class Skip(Exception):
    """This file is left out; the message is the reason shown to the user. Never leaves this package."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What is too much.

    Attributes:
        file_bytes: largest file that is opened.
        text_chars: longest text of one document.
        unpacked_bytes: largest sum of unpacked parts of a Word file.
        seconds: longest time for one file.
        memory_bytes: most memory of the process that reads PDF, Word, HTML and mail.
    """

    file_bytes: int = 64 << 20
    text_chars: int = 20_000_000
    unpacked_bytes: int = 256 << 20
    seconds: float = 60.0
    memory_bytes: int = 2 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One document of a file (a mailbox holds many).

    Attributes:
        part: "" for the whole file, else what is put after "#" in the document's path.
        title: its own title, or "" when it names none.
        text: clean text with "\\n" line ends; headings of PDF-less formats as Markdown.
        format: "text", "markdown", "rst", "source", "html", "pdf", "docx" or "mail".
        encoding: how bytes were read, where that was a guess or not UTF-8; else "".
    """

    part: str = ""
    title: str = ""
    text: str
    format: str
    encoding: str = ""


@dataclass(frozen=True, slots=True)
class Extracted:
    """What one file gave: documents, and (part, reason) of what within it was left out."""

    parts: tuple[Part, ...]
    skipped: tuple[tuple[str, str], ...] = ()


def needs_worker(name: str) -> bool:
    """Whether the file's format is read in a process of its own."""
    suffix = _suffix(name)
    return suffix in _WORKER or suffix in _HTML


def extract(name: str, data: bytes, limits: Limits) -> Extracted:
    """The documents in one file's bytes.

    Args:
        name: its path, for its suffix.
        data: its content.
        limits: what is too much.

    Raises:
        Skip: there is no text to be had; with the reason.
    """
    if not data:
        raise Skip("empty file")
    suffix = _suffix(name)
    if suffix in _KNOWN_UNREAD:
        raise Skip(f"not read: {_KNOWN_UNREAD[suffix]}")
    kind = "html" if suffix in _HTML else _WORKER.get(suffix, "text")
    result = _EXTRACTORS[kind](name, data, limits)
    parts = tuple(part for part in result.parts if part.text.strip())
    if not parts:
        raise Skip("no text in it")
    if sum(len(part.text) for part in parts) > limits.text_chars:
        raise Skip(f"more than {limits.text_chars:,} characters of text")
    return Extracted(parts, result.skipped)


def decode(data: bytes, declared: str | None = None) -> tuple[str, str]:
    """(text, encoding): by byte-order mark, the declared encoding, UTF-8, and last Windows-1252 as a guess.

    Raises:
        Skip: the bytes are no text.
    """
    for bom, encoding in _BOMS:
        if data.startswith(bom):
            try:
                return _clean(data[len(bom) :].decode(encoding)), "" if encoding == "utf-8" else encoding
            except UnicodeDecodeError as error:
                raise Skip("damaged text: its byte-order mark says otherwise than its bytes") from error
    if b"\0" in data[: 1 << 16]:
        raise Skip("binary file")
    for tried in ("utf-8", declared):
        try:
            if tried:
                return _checked(data.decode(tried)), "" if tried == "utf-8" else tried
        except (UnicodeDecodeError, LookupError):
            continue
    return _checked(data.decode("cp1252", "replace")), "cp1252 (guessed)"


def _checked(text: str) -> str:
    head = text[:100_000]
    strange = len(_CONTROL.findall(head)) + head.count("\ufffd")
    if strange > _MAX_CONTROL_SHARE * len(head):
        raise Skip("binary file")
    return _clean(text)


def _clean(text: str) -> str:
    """Line ends as "\\n", no NUL and no other control characters, no lone surrogates."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n\n")
    return _CONTROL.sub("", text).encode("utf-8", "replace").decode("utf-8")


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix[1:].lower()


def _plain(name: str, data: bytes, _: Limits) -> Extracted:
    text, encoding = decode(data)
    suffix = _suffix(name)
    if suffix in _SOURCE:
        return Extracted((Part(text=text, format="source", encoding=encoding),))
    form = {"md": "markdown", "markdown": "markdown", "mdown": "markdown", "mkd": "markdown", "rst": "rst"}.get(suffix)
    if form is None and suffix and suffix not in _TEXT and encoding == "cp1252 (guessed)":
        raise Skip(f"unknown format .{suffix}")
    return Extracted((Part(title=_text_title(text, form), text=text, format=form or "text", encoding=encoding),))


_MARKDOWN_TITLE = re.compile(r"^#\s+(.+?)\s*#*$|^(\S[^\n]*)\n=+\s*$", re.MULTILINE)
_RST_TITLE = re.compile(r"(?:^|\n)(\S[^\n]*)\n([=\-~^\"'#*+])\2{2,}\s*(?:\n|$)")


def _text_title(text: str, form: str | None) -> str:
    head = text[:4000]
    if form == "markdown":
        found = _MARKDOWN_TITLE.search(head)
        return (found[1] or found[2]).strip() if found else ""
    if form == "rst":
        found = _RST_TITLE.search(head)
        return found[1].strip() if found else ""
    first = next((line.strip() for line in head.splitlines() if line.strip()), "")
    return first if len(first) <= 80 and not first.endswith((".", ",", ";", ":")) else ""


class _HtmlText(HTMLParser):
    """Readable text of a page: blocks on their own lines, headings as Markdown, no scripts and no styles."""

    _HIDDEN = _set("script style noscript template svg math head iframe object")
    _BLOCKS = _set(
        "p div section article main aside header footer nav ul ol li dl dt dd table tr blockquote pre figure "
        "figcaption form fieldset address hr h1 h2 h3 h4 h5 h6 body html"
    )

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title: str = ""
        self._out: list[str] = []
        self._hidden: list[str] = []
        self._in_title = False
        self._pre = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        if tag == "title":
            self._in_title = not self.title
        elif tag == "body":
            self._hidden.clear()  # a head that was never closed
        elif tag in self._HIDDEN:
            self._hidden.append(tag)
        if self._hidden:
            return
        if tag in ("td", "th"):
            self._out.append(" | ")
        elif tag in ("br", "tr"):
            self._out.append("\n")
        elif tag in self._BLOCKS:
            self._out.append("\n" if tag in ("li", "dt", "dd") else "\n\n")
        if tag == "li":
            self._out.append("- ")
        elif re.fullmatch("h[1-6]", tag):
            self._out.append("#" * int(tag[1]) + " ")
        elif tag == "pre":
            self._pre += 1

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self._in_title = False
        elif tag in self._hidden:
            while self._hidden.pop() != tag:
                pass
        elif tag == "pre":
            self._pre = max(0, self._pre - 1)
        if not self._hidden and tag in self._BLOCKS and tag not in ("li", "dt", "dd", "tr"):
            self._out.append("\n\n")

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data
        elif not self._hidden:
            self._out.append(data if self._pre else re.sub(r"\s+", " ", data))

    def text(self) -> str:
        """What was read so far."""
        lines = (re.sub(r"^(?: \| )+", "", line.rstrip()) for line in "".join(self._out).split("\n"))
        joined = "\n".join(line if line.startswith("    ") else line.strip(" ") for line in lines)
        return re.sub(r"\n{3,}", "\n\n", joined).strip()


_CHARSET = re.compile(rb"charset\s*=\s*[\"']?([A-Za-z0-9_:.-]{2,40})", re.IGNORECASE)


def html_text(page: str) -> tuple[str, str]:
    """(title, text) of an HTML page; broken markup is read as far as it goes."""
    parser = _HtmlText()
    parser.feed(page)
    parser.close()
    return " ".join(parser.title.split()), parser.text()


def _html(_: str, data: bytes, __: Limits) -> Extracted:
    declared = _CHARSET.search(data[:4096])
    page, encoding = decode(data, declared[1].decode("ascii") if declared else None)
    title, text = html_text(page)
    return Extracted((Part(title=title, text=text, format="html", encoding=encoding),))


def _pdf(_: str, data: bytes, __: Limits) -> Extracted:
    import pypdf
    import pypdf.errors

    if not data[:1024].lstrip().startswith(b"%PDF"):
        raise Skip("damaged PDF: it does not begin like one")
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise Skip("encrypted PDF: save it without a password")
        pages = [page.extract_text() for page in reader.pages]
        meta = reader.metadata
        title = str(meta.title or "") if meta else ""
    except pypdf.errors.DependencyError as error:
        raise Skip("encrypted PDF: save it without a password") from error
    text = _clean("\n\n".join(page.strip() for page in pages if page.strip()))
    if not text:
        raise Skip("PDF without text (scanned pages?): run it through text recognition first")
    return Extracted((Part(title=_clean(title).strip(), text=text, format="pdf"),))


def _docx(_: str, data: bytes, limits: Limits) -> Extracted:
    import docx

    if data.startswith(b"\xd0\xcf\x11\xe0"):
        raise Skip("encrypted or old Word file: save it as .docx without a password")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(one.file_size for one in archive.infolist())
    except (zipfile.BadZipFile, ValueError) as error:
        raise Skip("damaged Word file") from error
    if unpacked > limits.unpacked_bytes:
        raise Skip(f"Word file that unpacks to {unpacked:,} bytes (the limit is {limits.unpacked_bytes:,})")
    document = docx.Document(io.BytesIO(data))
    text = _clean("\n\n".join(block for block in _docx_blocks(document) if block.strip()))
    return Extracted((Part(title=str(document.core_properties.title or "").strip(), text=text, format="docx"),))


def _docx_blocks(document: object) -> Iterator[str]:
    from docx.table import Table

    for block in document.iter_inner_content():  # type: ignore[attr-defined]
        if isinstance(block, Table):
            rows = ([" ".join(cell.text.split()) for cell in row.cells] for row in block.rows)
            yield "\n".join(" | ".join(row) for row in rows)
            continue
        style = str(block.style.name or "") if block.style is not None else ""
        level = re.fullmatch(r"Heading ([1-6])", style)
        if style == "Title" and block.text.strip():
            yield "# " + block.text
        elif level and block.text.strip():
            yield "#" * int(level[1]) + " " + block.text
        else:
            yield ("- " if style.startswith("List") else "") + block.text


def _eml(_: str, data: bytes, __: Limits) -> Extracted:
    part, skipped = _mail(data, "")
    return Extracted((part,), skipped)


_FROM_LINE = re.compile(rb"(?:\A|(?<=\n\n)|(?<=\n\r\n))From [^\n]*\n")


def _mbox(_: str, data: bytes, __: Limits) -> Extracted:
    starts = [(found.start(), found.end()) for found in _FROM_LINE.finditer(data)]
    if not starts:
        raise Skip("damaged mailbox: it does not begin with a From line")
    parts: list[Part] = []
    skipped: list[tuple[str, str]] = []
    for number, (_start, begin) in enumerate(starts, start=1):
        end = starts[number][0] if number < len(starts) else len(data)
        raw = re.sub(rb"(?m)^>(>*From )", rb"\1", data[begin:end])
        try:
            part, left_out = _mail(raw, str(number))
        except Skip as reason:
            skipped.append((str(number), str(reason)))
            continue
        skipped += left_out
        if part.text.strip():
            parts.append(part)
        else:
            skipped.append((str(number), "mail without text"))
    return Extracted(tuple(parts), tuple(skipped))


def _mail(data: bytes, number: str) -> tuple[Part, tuple[tuple[str, str], ...]]:
    """One mail: From, To, Date and Subject, then its text; attachments are named and left out."""
    message = BytesParser(policy=policy.default).parsebytes(data)
    headers = [(name, _header(message, name)) for name in ("From", "To", "Cc", "Date", "Subject")]
    if not any(value for _, value in headers):
        raise Skip("damaged mail: it has no headers")
    body = _mail_body(message)
    if not body and not message.get("Subject"):
        raise Skip("mail without text")
    head = "\n".join(f"{name}: {value}" for name, value in headers if value)
    skipped = []
    for attachment in _attachments(message):
        skipped.append((f"{number}/{attachment}" if number else attachment, "attachment; save it as a file"))
    text = _clean(head + "\n\n" + body)
    return Part(part=number, title=dict(headers)["Subject"], text=text, format="mail"), tuple(skipped)


def _header(message: EmailMessage, name: str) -> str:
    try:
        return " ".join(str(message.get(name, "")).split())
    except (MessageError, ValueError, IndexError, AttributeError, TypeError):
        return ""  # a header that breaks the grammar is left out, the mail is not


def _mail_body(message: EmailMessage) -> str:
    body = message.get_body(preferencelist=("plain", "html"))
    if body is None:
        return ""
    try:
        content = str(body.get_content())
    except (LookupError, ValueError, KeyError):
        payload = body.get_payload(decode=True)
        content = decode(payload)[0] if isinstance(payload, bytes) else ""
    return html_text(content)[1] if body.get_content_subtype() == "html" else content.strip()


def _attachments(message: EmailMessage) -> list[str]:
    if not message.is_multipart():
        return []
    return [_clean(one.get_filename() or one.get_content_type()) for one in message.iter_attachments()]


_EXTRACTORS: dict[str, Callable[[str, bytes, Limits], Extracted]] = {
    "text": _plain,
    "html": _html,
    "pdf": _pdf,
    "docx": _docx,
    "eml": _eml,
    "mbox": _mbox,
}
