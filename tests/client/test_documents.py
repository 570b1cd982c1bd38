"""Ingestion: every format from files made here, every reason for leaving a file out, and only what changed is read."""

from __future__ import annotations

import io
import json
import logging
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import asdict
from email.message import EmailMessage
from pathlib import Path

import docx
import pypdf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ssd_client.documents import Document, Ingested, Limits, Progress, dedupe, ingest, split
from ssd_client.documents.extract import Skip, decode, extract, html_text
from ssd_client.documents.ingest import data_fingerprint, save_skipped
from ssd_client.documents.passages import place
from ssd_client.documents.worker import Worker, _serve
from ssd_client.documents.worker import main as worker_main
from ssd_client.errors import BadInput, StoreError


def pdf_bytes(*pages: str) -> bytes:
    """A PDF by hand: one line of Helvetica a page (no text operator for "")."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"", b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    kids = []
    for page in pages:
        stream = f"BT /F1 12 Tf 72 720 Td ({page}) Tj ET".encode() if page else b"0 0 10 10 re f"
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream))
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >> "
            b"/Contents %d 0 R >>" % len(objects)
        )
        kids.append(b"%d 0 R" % len(objects))
    objects[1] = b"<< /Type /Pages /Count %d /Kids [%s] >>" % (len(kids), b" ".join(kids))
    out, offsets = io.BytesIO(), []
    out.write(b"%PDF-1.4\n")
    for number, content in enumerate(objects, start=1):
        offsets.append(out.tell())
        out.write(b"%d 0 obj\n%s\nendobj\n" % (number, content))
    start = out.tell()
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    out.write(b"".join(b"%010d 00000 n \n" % one for one in offsets))
    out.write(b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start))
    return out.getvalue()


def encrypted_pdf() -> bytes:
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf_bytes("secret")))
    writer.encrypt("password", algorithm="RC4-128")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def docx_bytes() -> bytes:
    document = docx.Document()
    document.core_properties.title = "Travel rules"
    document.add_heading("Travel rules", level=0)
    document.add_heading("Trains", level=1)
    document.add_paragraph("Second class below four hours.")
    document.add_paragraph("Book early", style="List Bullet")
    table = document.add_table(rows=2, cols=2)
    for cell, text in zip([c for row in table.rows for c in row.cells], ["City", "Limit", "Oslo", "190"], strict=True):
        cell.text = text
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def mail_bytes(subject: str = "Gate code", *, html: bool = False, attachment: bool = False) -> bytes:
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = "Ada Marlow <ada@example.org>", "Büro <office@example.org>", subject
    mail["Date"] = "Mon, 02 Feb 2026 09:00:00 +0000"
    if html:
        mail.set_content("<p>The code is <b>4711</b>.</p><script>x()</script>", subtype="html")
    else:
        mail.set_content("The code is 4711.\nFrom now on.\n")
    if attachment:
        mail.add_attachment(b"%PDF", maintype="application", subtype="pdf", filename="plan.pdf")
    return mail.as_bytes()


FILES: dict[str, bytes] = {
    "a.txt": b"Plain words.\r\nSecond line.",
    "b.md": b"# Keys\n\nThe key hangs in the hall.\n\n## Spare\n\nThe spare is with Ada.\n",
    "c.rst": b"Boats\n=====\n\nThe boat is red.\n\nSails\n-----\n\nTwo sails.\n",
    "d.html": b"<html><head><title>Menu &amp; prices</title><style>p{}</style></head><body><h1>Menu</h1>"
    b"<p>Soup<br>4 pounds</p><ul><li>Bread</li></ul><script>alert(1)</script></body></html>",
    "e.pdf": pdf_bytes("Page one text", "Page two text"),
    "f.docx": docx_bytes(),
    "g.eml": mail_bytes(attachment=True),
    "h.mbox": b"From ada@x Mon Feb  2 09:00:00 2026\n"
    + mail_bytes("One").replace(b"\nFrom now", b"\n>From now")
    + b"\nFrom bob@x Mon Feb  2 09:00:00 2026\n"
    + mail_bytes("Two"),
    "sub/i.py": b"def area(r):\n    return 3 * r * r\n",
    "README": b"Read this first.",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "docs"
    for name, data in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def by_path(result: Ingested) -> dict[str, Document]:
    return {one.path: one for one in result.documents}


def test_every_format(folder: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    result = ingest(folder, tmp_path / "db", progress=seen.append, workers=2)
    found = by_path(result)
    assert set(found) == {*FILES, "h.mbox#1", "h.mbox#2"} - {"h.mbox"}
    assert found["a.txt"].text == "Plain words.\nSecond line."
    assert (found["b.md"].title, found["c.rst"].title, found["d.html"].title) == ("Keys", "Boats", "Menu & prices")
    assert found["d.html"].text == "# Menu\n\nSoup\n4 pounds\n\n- Bread"
    assert found["e.pdf"].text == "Page one text\n\nPage two text"
    assert found["f.docx"].title == "Travel rules"
    for part in ("# Travel rules", "# Trains", "Second class below four hours.", "- Book early", "Oslo | 190"):
        assert part in found["f.docx"].text
    assert found["g.eml"].title == "Gate code"
    assert "From: Ada Marlow <ada@example.org>\nTo: Büro <office@example.org>\n" in found["g.eml"].text
    assert "The code is 4711." in found["g.eml"].text
    assert found["h.mbox#1"].title == "One"
    assert found["h.mbox#1"].text.endswith("The code is 4711.\nFrom now on.")
    assert found["h.mbox#2"].title == "Two"
    assert (found["sub/i.py"].title, found["sub/i.py"].format) == ("i.py", "source")
    assert found["a.txt"].mtime == pytest.approx((folder / "a.txt").stat().st_mtime)
    assert result.skipped == (("g.eml#plan.pdf", "attachment; save it as a file"),)
    assert (result.added, result.parsed, result.unchanged) == (len(FILES), len(FILES), 0)
    assert [one.done for one in seen] == list(range(1, len(FILES) + 1))
    assert {one.total for one in seen} == {len(FILES)}
    assert (tmp_path / "db").stat().st_mode & 0o777 == 0o600


def test_only_what_changed_is_read_again(folder: Path, tmp_path: Path) -> None:
    first = ingest(folder, tmp_path / "db")
    os.utime(folder / "e.pdf", (1, 1))
    again = ingest(folder, tmp_path / "db")
    assert (again.parsed, again.added, again.changed, again.removed) == (0, 0, 0, 0)
    assert again.unchanged == len(FILES)
    assert again.fingerprint == first.fingerprint
    assert again.skipped == first.skipped
    assert by_path(again)["e.pdf"].mtime == 1
    (folder / "e.pdf").write_bytes(pdf_bytes("Another page"))
    (folder / "a.txt").unlink()
    (folder / "h.mbox").unlink()
    (folder / "new.txt").write_text("Fresh.")
    states: list[tuple[str, str]] = []
    third = ingest(folder, tmp_path / "db", progress=lambda one: states.append((one.path, one.state)))
    assert (third.parsed, third.added, third.changed, third.removed) == (2, 1, 1, 2)
    assert by_path(third)["e.pdf"].text == "Another page"
    assert not {"a.txt", "h.mbox#1"} & set(by_path(third))
    assert {one for one in states if one[1] != "unchanged"} == {("e.pdf", "changed"), ("new.txt", "added")}
    assert by_path(third)["b.md"].id == by_path(first)["b.md"].id
    assert by_path(third)["e.pdf"].id != by_path(first)["e.pdf"].id


def bomb() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", b" " * 5_000_000)
    return out.getvalue()


BAD: dict[str, tuple[bytes, str]] = {
    "empty.txt": (b"", "empty file"),
    "blank.txt": (b" \n\t\n", "no text in it"),
    "noise.bin": (bytes(range(256)) * 20, "binary file"),
    "noise.txt": (random.Random(1).randbytes(5000).replace(b"\0", b"\1"), "binary file"),
    "utf16.txt": (b"\xff\xfea", "damaged text"),
    "photo.jpg": (b"\xff\xd8\xff\xe0\0\x10JFIF", "binary file"),
    "scan.pdf": (pdf_bytes(""), "PDF without text"),
    "locked.pdf": (encrypted_pdf(), "encrypted PDF"),
    "broken.pdf": (b"%PDF-1.4\n" + b"garbage " * 50, "damaged"),
    "fake.pdf": (b"hello", "damaged PDF"),
    "bomb.docx": (bomb(), "unpacks to 5,000,000 bytes"),
    "broken.docx": (b"PK\3\4 nothing", "damaged Word file"),
    "empty.docx": (b"PK\5\6" + b"\0" * 18, "damaged"),
    "old.docx": (b"\xd0\xcf\x11\xe0" + b"\0" * 100, "encrypted or old Word file"),
    "old.doc": (b"\xd0\xcf\x11\xe0", "save it as .docx"),
    "table.xlsx": (b"PK\3\4", "save it as .csv"),
    "junk.eml": (b"\0\1\2", "damaged mail"),
    "junk.mbox": (b"no such thing", "damaged mailbox"),
    "data.xyz": ("Umlaute sind schön.".encode("cp1252"), "unknown format .xyz"),
    "huge.txt": (b"x" * 200_000, "200,000 bytes (the limit is 150,000)"),
    "long.txt": (b"word " * 25_000, "more than 100,000 characters"),
}


def test_every_file_left_out_has_its_reason(tmp_path: Path) -> None:
    root = tmp_path / "docs"
    root.mkdir()
    (root / "good.txt").write_text("good")
    for name, (data, _) in BAD.items():
        (root / name).write_bytes(data)
    os.mkfifo(root / "pipe")
    limits = Limits(file_bytes=150_000, text_chars=100_000, unpacked_bytes=1_000_000)
    for run in range(2):
        result = ingest(root, tmp_path / "db", limits=limits, workers=2)
        assert set(by_path(result)) == {"good.txt"}
        reasons = dict(result.skipped)
        assert reasons.pop("pipe") == "not a plain file"
        assert set(reasons) == set(BAD)
        for name, (_, reason) in BAD.items():
            assert reason in reasons[name], name
        assert result.parsed == (0 if run else len(BAD))  # huge.txt is never read; good.txt is


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker(Limits(text_chars=100_000, unpacked_bytes=1_000_000))
    yield worker
    worker.stop()


def read_in(worker: Worker, path: Path, name: str) -> dict[str, object]:
    try:
        digest, found = worker.read(path, name)
    except Skip as reason:
        return {"skip": str(reason)}
    return {"sha256": digest, "parts": [asdict(one) for one in found.parts], "skipped": found.skipped}


@pytest.mark.parametrize("name", [*FILES, *BAD])
def test_reading_here_is_reading_in_the_worker(worker: Worker, tmp_path: Path, name: str) -> None:
    """The worker's own function in this process: the same documents, the same reasons."""
    path = tmp_path / Path(name).name
    path.write_bytes(FILES[name] if name in FILES else BAD[name][0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as the worker does: pypdf warns of broken files
        here = _serve({"path": os.fsencode(path).hex(), "name": name}, worker.limits)
    assert read_in(worker, path, name) == here


def test_the_reader_process_answers_line_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`main` here, but without its limit on memory."""
    (tmp_path / "x.html").write_text("<p>One</p>")
    requests = [{"path": os.fsencode(tmp_path / name).hex(), "name": name} for name in ("x.html", "y.html")]
    monkeypatch.setattr(sys, "argv", ["worker", json.dumps(asdict(Limits()))])
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(json.dumps(one) + "\n" for one in requests)))
    monkeypatch.setattr("resource.setrlimit", lambda *_: None)
    try:
        with warnings.catch_warnings():
            worker_main()
    finally:
        logging.disable(logging.NOTSET)
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["parts"][0]["text"] == "One"
    assert second == {"skip": "cannot be read (No such file or directory)"}


def test_a_mailbox_with_broken_mails() -> None:
    box = b"From a\n" + mail_bytes() + b"\nFrom b\nno header at all\n\nFrom c\n" + mail_bytes(attachment=True)
    found = extract("x.mbox", box, Limits())
    assert [one.part for one in found.parts] == ["1", "3"]
    assert dict(found.skipped) == {
        "2": "damaged mail: it has no headers",
        "3/plan.pdf": "attachment; save it as a file",
    }
    with pytest.raises(Skip, match="no text in it"):
        extract("x.mbox", b"From a\n\n\n", Limits())


def test_the_list_of_what_was_left_out_is_written(folder: Path, tmp_path: Path) -> None:
    result = ingest(folder, tmp_path / "db")
    save_skipped(result, tmp_path / "skipped.json")
    assert json.loads((tmp_path / "skipped.json").read_text()) == [
        {"path": "g.eml#plan.pdf", "reason": "attachment; save it as a file"}
    ]
    assert data_fingerprint(list(reversed(result.documents))) == result.fingerprint


def test_folders_and_links_left_out(tmp_path: Path) -> None:
    root, outside = tmp_path / "docs", tmp_path / "outside"
    for name in (".git", ".secret", "node_modules", "__pycache__", "venv", "real", "real/deep"):
        (root / name).mkdir(parents=True)
        (root / name / "x.txt").write_text(f"text of {name}")
    outside.mkdir()
    (outside / "private.txt").write_text("not yours")
    (root / "venv" / "pyvenv.cfg").write_text("")
    (root / ".hidden.txt").write_text("x")
    (root / "loop").symlink_to(root)
    (root / "away").symlink_to(outside)
    (root / "away.txt").symlink_to(outside / "private.txt")
    (root / "dead").symlink_to(root / "absent")
    result = ingest(root, tmp_path / "db")
    assert set(by_path(result)) == {"real/x.txt", "real/deep/x.txt"}
    assert dict(result.skipped) == {
        ".git/": "folder of a version control system",
        ".secret/": "hidden folder",
        "node_modules/": "folder of installed packages",
        "__pycache__/": "folder of compiled files",
        "venv/": "Python environment",
        ".hidden.txt": "hidden file",
        "loop": "symbolic link within the folder",
        "away": "symbolic link that leads out of the folder",
        "away.txt": "symbolic link that leads out of the folder",
        "dead": "symbolic link that leads nowhere",
    }


def test_unreadable_files_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "docs"
    (root / "sub").mkdir(parents=True)
    for name in ("a.txt", "b.txt", "sub/c.txt"):
        (root / name).write_text(name)
    assert len(ingest(root, tmp_path / "db").documents) == 3
    scandir, opened = os.scandir, Path.open

    def no_scan(path: Path) -> object:
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    def no_open(self: Path, *args: object, **kwargs: object) -> object:
        if self.name == "b.txt":
            raise PermissionError(13, "Permission denied")
        return opened(self, *args, **kwargs)  # type: ignore[call-overload]

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", no_scan)
        patch.setattr(Path, "open", no_open)
        result = ingest(root, tmp_path / "db")
    assert set(by_path(result)) == {"a.txt"}
    assert dict(result.skipped) == {
        "b.txt": "cannot be read (Permission denied)",
        "sub/": "folder cannot be read (Permission denied)",
    }
    assert len(ingest(root, tmp_path / "db").documents) == 3


def test_bad_roots(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="name a folder with documents"):
        ingest(tmp_path / "absent", tmp_path / "db")
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match="is not a folder"):
        ingest(tmp_path / "file", tmp_path / "db")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="is empty"):
        ingest(tmp_path / "empty", tmp_path / "db")
    (tmp_path / "empty" / "x.txt").write_text("")
    with pytest.raises(BadInput, match=r"1 left out, the first: x\.txt: empty file"):
        ingest(tmp_path / "empty", tmp_path / "db")


def test_a_damaged_record(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "db").write_bytes(b"no database" * 500)
    with pytest.raises(StoreError, match="remove it, and everything is read again"):
        ingest(folder, tmp_path / "db")
    with pytest.raises(StoreError):
        ingest(folder, tmp_path / "db" / "below")


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    root = tmp_path / "docs"
    root.mkdir()
    for i in range(30):
        (root / f"{i:02}.txt").write_text(f"document {i}")
    code = (
        "import sys, time; from pathlib import Path; from ssd_client.documents import ingest\n"
        "def slow(p):\n    print(p.done, flush=True)\n    time.sleep(.05)\n"
        "ingest(Path(sys.argv[1]), Path(sys.argv[2]), progress=slow)\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", code, str(root), str(tmp_path / "db")], stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    with run.stdout as out:
        while int(out.readline()) < 10:
            pass
        run.send_signal(signal.SIGKILL)
        run.wait(timeout=10)
    result = ingest(root, tmp_path / "db")
    assert len(result.documents) == 30
    assert result.parsed <= 20
    assert result.parsed + result.unchanged == 30
    with sqlite3.connect(tmp_path / "db") as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()


def test_a_reader_that_hangs_or_dies_costs_one_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the reader: hangs on one name, dies on another, reads the rest."""
    script = tmp_path / "stand_in.py"
    script.write_text(
        "import json, os, sys, time\n"
        "sys.argv = [sys.argv[0], sys.argv[-1]]\n"
        "from ssd_client.documents import worker\n"
        "real = worker._serve\n"
        "def serve(request, limits):\n"
        "    if request['name'] == 'e.pdf': time.sleep(60)\n"
        "    if request['name'] == 'f.docx': os._exit(3)\n"
        "    return real(request, limits)\n"
        "worker._serve = serve\n"
        "worker.main()\n"
    )
    popen = subprocess.Popen

    def stand_in(command: list[str], **options: object) -> object:
        return popen([command[0], str(script), command[-1]], **options)  # type: ignore[call-overload]

    with monkeypatch.context() as patch:
        patch.setattr("ssd_client.documents.worker.subprocess.Popen", stand_in)
        began = time.monotonic()
        result = ingest(folder, tmp_path / "db", limits=Limits(seconds=2.0), workers=2)
        assert time.monotonic() - began < 20
    reasons = dict(result.skipped)
    assert reasons["e.pdf"] == "took longer than 2 s to read"
    assert reasons["f.docx"] == "could not be read: the reader crashed on it"
    assert {"d.html", "g.eml", "a.txt"} <= set(by_path(result))
    assert {"e.pdf", "f.docx"} <= set(by_path(ingest(folder, tmp_path / "db")))  # both are tried again


def test_a_stopped_worker_skips(tmp_path: Path) -> None:
    worker = Worker(Limits())
    worker.stop()
    worker.stop()
    with pytest.raises(Skip, match="stopped"):
        worker.read(tmp_path / "x.pdf", "x.pdf")


@pytest.mark.parametrize(
    ("error", "reason"),
    [(MemoryError(), "MB of memory"), (RecursionError(), "nested too deeply"), (KeyError("x"), "KeyError")],
)
def test_whatever_a_parser_raises_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    (tmp_path / "x.pdf").write_bytes(b"x")

    def broken(*_: object) -> object:
        raise error

    monkeypatch.setattr("ssd_client.documents.worker.extract", broken)
    answer = _serve({"path": os.fsencode(tmp_path / "x.pdf").hex(), "name": "x.pdf"}, Limits())
    assert reason in answer["skip"]


@pytest.mark.parametrize(
    ("data", "text", "encoding"),
    [
        ("Grüße".encode(), "Grüße", ""),
        (b"\xef\xbb\xbfx", "x", ""),
        ("Grüße".encode("utf-16"), "Grüße", "utf-16-le"),
        (b"\xfe\xff" + "ü".encode("utf-16-be"), "ü", "utf-16-be"),
        ("“Grüße” für 5 €".encode("cp1252"), "“Grüße” für 5 €", "cp1252 (guessed)"),
        (b"a\r\nb\rc\x0cd\x07" + b"x" * 200, "a\nb\nc\n\nd" + "x" * 200, ""),
    ],
)
def test_encodings(data: bytes, text: str, encoding: str) -> None:
    assert decode(data) == (text, encoding)


def test_declared_html_encoding() -> None:
    page = '<meta charset="iso-8859-2"><p>Źródło</p>'.encode("iso-8859-2")
    part = extract("x.html", page, Limits()).parts[0]
    assert (part.text, part.encoding) == ("Źródło", "iso-8859-2")


@given(st.binary(max_size=300), st.sampled_from(["txt", "md", "rst", "html", "eml", "mbox", "py", "", "xyz"]))
@settings(max_examples=300)
def test_any_bytes_give_text_or_a_reason(data: bytes, suffix: str) -> None:
    try:
        found = extract(f"x.{suffix}" if suffix else "x", data, Limits())
    except Skip:
        return
    for part in found.parts:
        assert part.text.strip()
        part.text.encode()
        assert "\0" not in part.text


@given(st.text(alphabet="<>/=\"'& abphdivscriptstyleul1\n", max_size=120))
def test_any_markup_is_read(page: str) -> None:
    html_text(page)


def test_html_that_is_broken() -> None:
    assert html_text("<title>T<body><p>a<p>b<script>x<")[1] in ("", "a\n\nb")
    assert html_text("<head><title>T</title><body><p>a</p>") == ("T", "a")
    assert html_text("<pre>  x\n    y</pre>")[1] == "x\n    y"
    assert html_text("<table><tr><td>a</td><td>b</td></tr></table>")[1] == "a | b"
    assert html_text("a &lt; b &eacute;")[1] == "a < b é"


def test_html_mail_and_mail_without_body() -> None:
    text = extract("x.eml", mail_bytes(html=True), Limits()).parts[0].text
    assert text.endswith("The code is 4711.")
    assert "x()" not in text
    with pytest.raises(Skip, match="mail without text"):
        extract("x.eml", b"From: a@b\n\n", Limits())
    strange = b"From: a@b\nSubject: x\nContent-Type: text/plain; charset=none-such\n\nStill \xe4 text\n"
    assert "Still" in extract("x.eml", strange, Limits()).parts[0].text


def document(text: str, form: str = "text", path: str = "p", title: str = "T") -> Document:
    return Document(id=path, path=path, title=title, text=text, sha256="", mtime=0, format=form)


WORDS = [f"w{i}" for i in range(400)]


def essay(seed: int, length: int = 300) -> list[str]:
    return random.Random(seed).choices(WORDS, k=length)


def jaccard(a: list[str], b: list[str]) -> float:
    x, y = ({tuple(one[i : i + 5]) for i in range(len(one) - 4)} for one in (a, b))
    return len(x & y) / len(x | y)


def test_near_duplicates_are_left_out_and_named() -> None:
    base = essay(0)
    near, far = base.copy(), base.copy()
    near[10] = near[150] = "changed"
    far[::12] = ["changed"] * len(far[::12])
    assert jaccard(base, near) > 0.9
    assert jaccard(base, far) < 0.7
    result = dedupe([
        document(" ".join(near), path="b"),
        document(" ".join(base), path="a"),
        document(" ".join(base).upper().replace(" ", "\n"), path="c"),
        document(" ".join(far), path="d"),
        document(" ".join(essay(1)), path="e"),
        document("short one", path="f"),
        document("Short, one!", path="g"),
        document("short two", path="h"),
    ])  # fmt: skip
    assert [one.path for one in result.documents] == ["a", "d", "e", "f", "h"]
    report = {one.path: (one.kept, one.similarity) for one in result.duplicates}
    assert report["c"] == ("a", 1.0)
    assert report["g"] == ("f", 1.0)
    assert report["b"][0] == "a"
    assert report["b"][1] == pytest.approx(jaccard(base, near))


@given(st.integers(0, 10**6), st.integers(0, 40))
@settings(max_examples=40)
def test_what_is_removed_is_what_the_definition_says(seed: int, changes: int) -> None:
    base, other = essay(seed, 120), essay(seed, 120)
    for place_ in random.Random(seed + 1).sample(range(120), changes):
        other[place_] = f"x{place_}"
    result = dedupe([document(" ".join(base), path="a"), document(" ".join(other), path="b")])
    assert (len(result.documents) == 1) == (jaccard(base, other) >= 0.8)


def test_passages_follow_headings() -> None:
    text = FILES["b.md"].decode()
    found = split(document(text, "markdown", title="Keys"))
    assert [(one.heading, one.text) for one in found] == [
        ("Keys", "The key hangs in the hall."),
        ("Keys > Spare", "The spare is with Ada."),
    ]
    assert found[1].full_text == "Keys > Spare: The spare is with Ada."
    rst = split(document(FILES["c.rst"].decode(), "rst"))
    assert [(one.heading, one.text) for one in rst] == [("Boats", "The boat is red."), ("Boats > Sails", "Two sails.")]
    assert split(document("# not a heading", "text"))[0].text == "# not a heading"
    fenced = split(document("# A\n\n```\n# no\n```\n", "markdown"))
    assert [one.heading for one in fenced] == ["A"]
    setext = split(document("Title\n=====\nx\n\nPart\n---\ny", "markdown"))
    assert [(one.heading, one.text) for one in setext] == [("Title", "x"), ("Title > Part", "y")]
    levels = split(document("# A\na\n## B\nb\n# C\nc", "markdown"))
    assert [one.heading for one in levels] == ["A", "A > B", "C"]


def test_passages_end_at_sentences() -> None:
    sentences = [f"This is sentence number {i} of a long paragraph." for i in range(40)]
    found = split(document(" ".join(sentences)), max_chars=200)
    assert all(one.text.endswith(".") and len(one.text) <= 200 for one in found)
    assert " ".join(one.text for one in found) == " ".join(sentences)
    short = split(document("One.\n\nTwo.\n\nThree."), max_chars=12)
    assert [one.text for one in short] == ["One.\n\nTwo.", "Three."]


@given(
    st.text(alphabet="ab .!?\n#=-_*`é\u2003", max_size=400),
    st.sampled_from(["text", "markdown", "rst", "html", "source"]),
    st.integers(1, 60),
)
def test_passages_are_slices_that_lose_no_word(text: str, form: str, limit: int) -> None:
    one = document(text, form)
    found = split(one, max_chars=limit)
    position = 0
    for passage in found:
        assert passage.text == text[passage.start : passage.end]
        assert passage.start >= position
        assert 0 < len(passage.text) <= limit
        position = passage.end
    if form in ("text", "source"):
        joined = "".join(passage.text for passage in found)
        assert [one for one in joined if one.isalnum()] == [one for one in text if one.isalnum()]


def test_long_lines_are_cut_quickly() -> None:
    began = time.monotonic()
    found = split(document("x" * 1_000_000 + " " + "word " * 200_000))
    assert time.monotonic() - began < 5
    assert max(len(one.text) for one in found) == 500
    with pytest.raises(ValueError, match="max_chars"):
        split(document("x"), max_chars=0)


def test_place() -> None:
    assert place("T", "") == "T"
    assert place("T", "T > A") == "T > A"
    assert place("T", "A > B") == "T > A > B"
