"""Questions about documents by rule, where a set has none of its own: only forms that read as a real question.

    terms             "- Annual fee: $59" under "# Blue Card: Fees"      What is the annual fee of the Blue Card?
    settings          "gc.auto", then "... defaults to 6700."            What is the default value of gc.auto?
    mails             From, Date and Subject                             Who wrote the mail ... on 10 Sep 2002?
    articles          "Plato was an ancient Greek philosopher ..."       Who was Plato?

What is accepted is a short string that stands in the document. Each rule fires on its own form, whatever the set is
called. Knows text alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from ssd_client.documents import Document
from ssd_cloud.corpus.facts import about

from ssd_bench.items import Question

_HEADING = re.compile(r"^# (?:Internal: )?(?P<of>(?!\w+ing )[A-Z][\w&()'-]* [\w&()' -]+?): .+", re.M)
_BULLET = re.compile(r"^[-*] \**(?P<key>[A-Z][A-Za-z -]{3,40}?)(?:\**:|:\**) +(?P<value>[^\n]{1,40})$", re.M)
_STATED = re.compile(r"\b(?:[Tt]he|[Aa]n?) (?P<key>[a-z][A-Za-z -]{3,40}?) (?:is|of) (?P<value>[$£€]?\d[^\s;]*)")
_KEY = re.compile(
    r"(?!there|one|your|if)(?:(?!for |on |of |and )[a-z]+ ){1,4}"
    r"(?:fee|limit|balance|period|bonus|rate|apy|apr|score|term)",
    re.I,
)
_VALUE = re.compile(r"[$£€]?\d[\d,.]*\d ?%?|[$£€]?\d ?%?")
_SETTING = re.compile(r"^(?P<name>[a-z][\w-]*(?:\.[\w<>-]+)+)\n\n(?P<text>.+)$", re.M)
_DEFAULT = re.compile(
    r"\b(?:[Dd]efaults? to|[Tt]he default(?: value)? is|Default is) \"?(?P<value>[\w./$-]+(?: \w+)?)\"?(?: \(|[.,;]|$)"
)
_FROM = re.compile(r"^From: \"?(?P<name>[A-Z][\w.'-]+(?: [A-Z][\w.'-]*)* [A-Z][\w'-]+)\"? <", re.M)
_SENT = re.compile(r"^Date: (?:\w{3}, )?(?P<date>\d{1,2} \w{3} \d{4})", re.M)
_SUBJECT = re.compile(r"^Subject: (?P<subject>\S.{3,40})$", re.M)
_SUBJECT_OF_TEXT = re.compile(r"(?P<of>(?:An? |The )?[A-Z0-9][^.;:\n]{1,60}?) (?:is|was|are|were) (?:an?|the|one)\b")
_KIND = re.compile(
    r"(?:is|was|are|were) (?:an?|the|one of the) (?P<kind>[\w' -]+?)"
    r"(?= (?:of|in|that|which|who|whose|and|or|with|from|for|to|by|on|at|where|as|used|known|based|made)\b"
    r"|[,.;])"
)
_YES = {"true", "false", "yes", "no"}
_EMPTY = {
    "type", "kind", "form", "set", "part", "concept", "process", "idea", "term", "name", "group", "number", "ability",
    "place", "thing", "topic", "collection", "way", "entity", "member", "remote", "act", "one", "field", "result",
    "system", "state", "branch", "method", "piece", "body", "area", "quality", "genus", "series", "small", "large",
}  # fmt: skip
"""Nouns that say nothing of what a thing is."""
_LONGEST_ARTICLE = 2500


def questions(documents: Sequence[Document], *, limit: int, seed: int) -> list[Question]:
    """Questions that the documents answer, at most `limit`, the documents in an order that follows from the seed.

    One of each document and then a second one. A question that several documents put is left out: its answer would
    depend on which is meant.
    """
    of_each = [list(_of(document)) for document in documents]
    asked = Counter(one.question for found in of_each for one in found)
    order = np.random.default_rng([seed, 3]).permutation(len(documents)).tolist()
    turns = range(max(map(len, of_each), default=0))
    found = [of_each[i][turn] for turn in turns for i in order if turn < len(of_each[i])]
    return [one for one in found if asked[one.question] == 1][:limit]


def _of(document: Document) -> Iterator[Question]:
    rules: tuple[Callable[[Document], Iterator[tuple[str, tuple[str, ...]]]], ...] = (
        _terms, _settings, _mail, _article,
    )  # fmt: skip
    for rule in rules:
        for number, (question, accepted) in enumerate(rule(document)):
            yield Question(
                f"{document.path}?{rule.__name__[1:]}{number}", question, accepted[0], accepted, document.path
            )


def _terms(document: Document) -> Iterator[tuple[str, tuple[str, ...]]]:
    heading = _HEADING.search(document.text)
    found = [one for rule in (_BULLET, _STATED) for one in rule.finditer(document.text)]
    keys = Counter(one["key"].lower() for one in found)
    for one in found if heading else ():
        value = _VALUE.search(one["value"])
        if heading and value and _KEY.fullmatch(one["key"]) and keys[one["key"].lower()] == 1:
            of = heading["of"] if heading["of"].startswith("The ") else f"the {heading['of']}"
            key = one["key"][0].lower() + one["key"][1:]
            yield f"What is the {key} of {of}?", _amounts(value[0].strip().rstrip(".,"))


def _amounts(value: str) -> tuple[str, ...]:
    """An amount, and the same without cents where there are none."""
    return tuple(dict.fromkeys((value, re.sub(r"\.00?$", "", value))))


def _settings(document: Document) -> Iterator[tuple[str, tuple[str, ...]]]:
    for one in _SETTING.finditer(document.text):
        values = [v["value"].rstrip(".") for v in _DEFAULT.finditer(one["text"])]
        if len(values) == 1 and "<" not in one["name"] and values[0].lower() not in _YES:
            yield f"What is the default value of {one['name']}?", (values[0],)


def _mail(document: Document) -> Iterator[tuple[str, tuple[str, ...]]]:
    head = document.text.partition("\n\n")[0]
    writer, sent, subject = _FROM.search(head), _SENT.search(head), _SUBJECT.search(head)
    if writer and sent and subject:
        asked = f'Who wrote the mail of {sent["date"]} with the subject "{subject["subject"].strip()}"?'
        yield asked, (writer["name"], writer["name"].split()[-1])


def _article(document: Document) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What an article's first sentence says its subject is, where the file is called after the subject."""
    opening = _SUBJECT_OF_TEXT.match(document.text)
    if len(document.text) > _LONGEST_ARTICLE or opening is None or _slug(opening["of"]) not in _slug(document.path):
        return
    for one in about(opening["of"], document.text):
        kind = _KIND.search(one.answer)
        if kind is None or not one.question.startswith(("What is ", "What are ", "What was ", "What were ", "Who ")):
            continue
        head = kind["kind"].split()[-1]
        if head in _EMPTY or head.endswith("ed"):
            return
        asked = re.sub(r"(?<=[a-z] )(An?|The)(?= )", lambda m: m[0].lower(), one.question)
        yield asked, tuple(dict.fromkeys((kind["kind"], head)))
        return


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"^(?:an?|the) ", "", text.lower())).strip("-")
