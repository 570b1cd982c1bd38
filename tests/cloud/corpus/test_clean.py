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
