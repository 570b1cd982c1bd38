"""What cleaning changes, and what it leaves out for which reason."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from ssd_cloud.corpus.clean import clean, fault, normalize
from ssd_cloud.corpus.model import Document


@given(st.text(max_size=300))
def test_normalizing_twice_changes_nothing(text: str):
    once = normalize(text)
    assert normalize(once) == once
    assert not set(once) & {"\x00", "\x07", "\u200b", "\ufeff", "\u00a0", "\t", "\r"}


def test_normalize():
    assert normalize("a\u00a0 b\u200b\tc\r\n\n\n\ncafe\u0301 \x07\n    code  x") == "a b c\n\ncafé\n    code  x"


def test_faults(english):
    assert fault(english(1)) == ""
    assert fault("Haus Garten Baum Fluss Berg Stadt Wald Wiese Weg Tal " * 9) == "not English prose"
    assert fault("the of a is {} == [] // ++ -- 0x00 11 22 33 (); && || <> :: 99 " * 9) == "mostly code or tables"
    assert fault("\n".join(["This is the same line in the text."] * 9)) == "repeats itself"
    assert fault("this is the very same thing said again and again " * 30) == "repeats itself"


def test_boilerplate_goes_and_what_is_short_is_left_out(english):
    pages = [Document(str(i), f"{english(i)}\n\nCopyright (C) 2001 Somebody\n\nBack to the index") for i in range(20)]
    found = clean([*pages, Document("short", "A few words.")], least_chars=200)
    assert len(found.documents) == 20
    assert found.dropped == {"too short": 1}
    assert found.documents[3] == Document("3", english(3))


def test_headings_over_nothing_go(english):
    (one,) = clean([Document("x", f"# Title\n\n{english(1)}\n\n## Links")], least_chars=1).documents
    assert one.text == f"# Title\n\n{english(1)}"


def test_every_document_that_is_left_out_is_counted(english):
    german = "Der Hafen wurde von Mönchen gebaut und später verlassen, doch die Mauer steht noch heute. " * 4
    code = " ".join(f"the {{x{i}}} := {i * 7919 % 9973} [{i}];" for i in range(60))
    again = "\n".join(["It is the same line that was written before this one."] * 9)
    texts = {"prose": english(1), "short": "The end.", "other": german, "code": code, "again": again}
    found = clean([Document(name, text) for name, text in texts.items()], least_chars=100)
    assert [one.name for one in found.documents] == ["prose"]
    assert found.dropped == dict.fromkeys(
        ["mostly code or tables", "not English prose", "repeats itself", "too short"], 1
    )


def test_bare_addresses_go_and_those_in_a_sentence_stay(english):
    said = f"{english(1)} See https://example.org/a for it."
    (one,) = clean(
        [Document("x", f"{said}\n\n→ https://example.org/b\n\n<https://example.org>")], least_chars=1
    ).documents
    assert one.text == said
