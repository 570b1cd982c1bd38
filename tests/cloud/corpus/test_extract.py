"""Readers: what of a page, a manual, a dictionary or a record stays, and what does not."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ssd_cloud.corpus import extract_data, extract_html, extract_text
from ssd_cloud.corpus.extract import LONGEST_CHARS, pieces
from ssd_cloud.corpus.model import Document, Question
from ssd_cloud.errors import DataError


def text(reader, data: str | bytes) -> str:
    (document,) = reader("x", data.encode() if isinstance(data, str) else data)
    return document.text


def test_a_page_keeps_headings_lists_and_short_code():
    page = """<html><head><title>t</title><style>p {}</style></head><body>
    <div class="navheader"><a>Prev</a></div><nav>menu</nav>
    <h1>Title</h1><p>One <b>bold</b>
    word.</p><ul><li><p>first</p></li><li>second</li></ul><h2>Part</h2><pre>a = 1
b  = 2</pre><script>evil()</script><table><tr><td>1</td><td>2</td></tr></table><p>End.</p></body></html>"""
    found = text(extract_html.html, page)
    assert found == "# Title\n\nOne bold word.\n\n- first\n- second\n\n## Part\n\n    a = 1\n    b  = 2\n\nEnd."


def test_a_page_leaves_long_code_out_and_keeps_tables_of_prose():
    cell = "A cell that holds a whole sentence of prose, as pages laid out with tables do."
    page = f"<body><p>Before.</p><pre>{chr(10).join('x' * 20)}</pre><table><tr><td>{cell}</td></tr></table></body>"
    assert text(extract_html.html, page) == f"Before.\n\n{cell}"


def test_the_main_part_of_a_page_is_taken_where_it_is_marked():
    body = "A paragraph of the page. " * 20
    assert "Elsewhere" not in text(extract_html.html, f"<body><p>Elsewhere</p><main><p>{body}</p></main></body>")


def test_broken_markup_and_nothing_at_all():
    assert text(extract_html.html, "<p>One<p>Two<b>") == "One\n\nTwo"
    assert list(extract_html.html("x", b" \n")) == []


def test_a_help_page_with_an_entity_bomb_is_read_without_it():
    bomb = b"""<?xml version="1.0"?><!DOCTYPE page [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>
    <page xmlns="http://projectmallard.org/1.0/"><title>Print</title><p>Choose &b; Print.</p>
    <section><title>More</title><p>Paper.</p></section></page>"""
    found = text(extract_html.mallard, bomb)
    assert found.startswith("# Print\n\nChoose")
    assert "## More\n\nPaper." in found
    assert "aaaa" not in found


def test_restructured_text():
    source = """
=====
Title
=====

A paragraph that
goes on with :ref:`a link <there>` and ``code``.

.. note::

   Mind the *gap*.

.. image:: x.png

.. code-block:: c

   int main;

Part
----

An example::

    one
    two

* first
  item
#. second

+---+---+
| a | b |
+---+---+

.. [1] a footnote
"""
    assert text(extract_text.rst, source) == (
        "# Title\n\nA paragraph that goes on with a link and code.\n\nMind the gap.\n\n## Part\n\nAn example:\n\n"
        "    one\n    two\n\n- first item\n- second"
    )


def test_perl_documentation():
    source = """=head1 NAME

perlx - a B<page> with C<< a->b >> and E<lt>signsE<gt>

=over 4

=item *

First thing, see L<perlfunc/sort>
or L<the list|perltoc>.

=back

    code here

=begin html

<p>no</p>

=end html

=cut
"""
    assert text(extract_text.pod, source) == (
        "# NAME\n\nperlx - a page with a->b and <signs>\n\n- First thing, see perlfunc, sort or the list.\n\n"
        "    code here"
    )


def test_markdown_loses_links_and_emphasis_and_line_ends():
    source = "# Head\nA *word* of [a link](http://x.y/(z)) that\ngoes **on**.\n\n![p](q)\n\n[1]: http://z\n"
    assert text(extract_text.markdown, source) == "# Head\n\nA word of a link that goes on."


def test_text_that_is_not_utf_8_is_read_all_the_same():
    assert text(extract_text.plain, "café".encode("cp1252")) == "café"


def test_a_dictionary_gives_pages_of_entries():
    source = """00-database-info
   About.
Abuse \\A*buse"\\, v. t. [OF. abuser.]
   1. To put to a wrong use; to {misapply}.
      [1913 Webster]

Abut
   <building> To end at a border with other things.
"""
    (page,) = extract_data.dictionary("d", source.encode())
    assert page.name == "d: Abuse"
    assert page.text == (
        "Abuse, v. t. [OF. abuser.]\n1. To put to a wrong use; to misapply.\n\n"
        "Abut\nTo end at a border with other things."
    )


def test_books_in_r_data(make):
    book = ["PRIDE", "", "CHAPTER 1", "", *["It is a truth,", "universally acknowledged."] * 60, "CHAPTER 2", "End."]
    data = make["r_strings"](["short"]) + make["r_strings"](book)
    found = list(extract_data.r_data("b", data))
    assert [one.name for one in found] == ["b 1.1", "b 1.2", "b 1.3"]
    assert found[1].text.startswith("CHAPTER 1\n\nIt is a truth, universally acknowledged. It is")


def test_r_data_of_another_form_is_an_error():
    with pytest.raises(DataError, match="not the R data"):
        list(extract_data.r_data("b", b"\0\0\0\x09nonsense"))


def test_yes_no_questions_and_stories():
    rows = [{"question": "is it so", "passage": "T -- It is so.", "label": "True"}, {"question": "q", "passage": "p"}]
    found = list(extract_data.yes_no("x", "\n".join(map(json.dumps, rows)).encode()))
    assert found == [Document("T", "It is so."), Question("is it so", "yes", "T", "It is so."), Document("", "p")]
    story = json.dumps({"question": "Who?", "answer": "['He.', 'The old man of the sea.']", "passage": "A story."})
    assert list(extract_data.stories("x", story.encode()))[1].answer == "The old man of the sea."


def test_a_mail_keeps_who_when_what_and_its_text():
    raw = b"From x  Thu\nFrom: A <a@b>\nDate: today\nSubject: Hi\nX-Other: no\n\nHello.\n"
    assert text(extract_data.mail, raw) == "From: A <a@b>\nDate: today\nSubject: Hi\n\nHello."


def test_records_of_another_form_are_an_error():
    for reader, data in ((extract_data.leads, b"[]"), (extract_data.bank, b"{"), (extract_data.dialogues, b"1")):
        with pytest.raises(DataError, match="expected"):
            list(reader("x", data))


@given(st.lists(st.text("ab #\n", min_size=1, max_size=9000), max_size=12))
def test_pieces_are_the_document(blocks: list[str]):
    whole = Document("d", "\n\n".join(blocks))
    cut = pieces(whole)
    assert "\n\n".join(one.text for one in cut) == whole.text
    assert all(len(one.text) <= LONGEST_CHARS + 9000 for one in cut)
    assert len({one.name for one in cut}) == len(cut)


def test_words_that_stand_on_a_page_for_another_system_or_to_find_it_go():
    page = """<body><p>Choose <span><span hidden="true" class="MAC">Program - Preferences</span><span hidden="true"
    >Tools - Options</span></span>.</p><div class=categorybox>Categories: <a>Plots</a> &middot;</div>
    <dl><dt><span class="category">: </span><span><em></em> <strong>echo</strong></span> <em>on</em></dt>
    <dd>Show commands.</dd></dl></body>"""
    assert text(extract_html.html, page) == "Choose Tools - Options.\n\necho on\n\nShow commands."


def test_a_help_page_keeps_the_lines_of_its_code():
    page = b"""<page xmlns="http://projectmallard.org/1.0/"><title>Keys</title><p>Set <code>a</code>:</p>
<code>
# a comment
[section]
</code></page>"""
    assert text(extract_html.mallard, page) == "# Keys\n\nSet a:\n\n    # a comment\n    [section]"


def test_names_in_restructured_text_stay_whole():
    source = "Put it into __main__.py, says :pep:`441` (:issue:`14910`); see `the list`_ and Python_.\n"
    assert text(extract_text.rst, source) == (
        "Put it into __main__.py, says PEP 441 (issue 14910); see the list and Python."
    )


def test_items_of_perl_documentation_that_are_code_alone():
    source = "=over 4\n\n=item *\n\n    $ make\n\n=item *\n\nThis builds it.\n\n=back\n"
    assert text(extract_text.pod, source) == "    $ make\n\n- This builds it."


def test_dictionary_entries_without_how_they_are_spoken():
    source = """Registrant (-trant), n. [L. registrans,
   p. pr. See {Register}, v.] One who registers.
   [1913 Webster]

Registrar \\Reg"is*trar\\, Registrary \\Reg"is*tra*ry\\, n. [LL. registrarius, or F. r['e]gistraire.]
   1. One who keeps a record of [ae]ons, as the [root]2 man of C[ae]sar said.

rabbit job
    n., /rab'it job/ A job that does little work but makes copies of itself.

et cetera
   /usr/share is the folder where what all may read is kept on a machine.
"""
    (page,) = extract_data.dictionary("d", source.encode())
    assert page.text == (
        "Registrant, n. [L. registrans, p. pr. See Register, v.]\nOne who registers.\n\n"
        "Registrar, Registrary, n. [LL. registrarius, or F. régistraire.]\n"
        "1. One who keeps a record of æons, as the √2 man of Cæsar said.\n\n"
        "rabbit job\nn., A job that does little work but makes copies of itself.\n\n"
        "et cetera\n/usr/share is the folder where what all may read is kept on a machine."
    )


def test_quotation_marks_of_typewriters_are_made_plain():
    row = {"question": "is it so", "passage": "``T'' (film) -- It is ``so''.", "label": "true"}
    assert next(extract_data.yes_no("x", json.dumps(row).encode())) == Document('"T" (film)', 'It is "so".')
