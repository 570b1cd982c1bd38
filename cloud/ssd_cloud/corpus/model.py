"""The values that pass between the steps of the corpus: packages, sources, documents, questions. No behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Client = Literal["pip", "npm", "apt"]
Use = Literal["text", "set"]


@dataclass(frozen=True, slots=True)
class Package:
    """What a package client fetches.

    Attributes:
        client: which one.
        name: of the package.
        version: the fixed release; "" where the client's own signed index decides (apt).
        sha256: of the archive, where the release is fixed; "" else.
    """

    client: Client
    name: str
    version: str = ""
    sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where text comes from, and under which terms.

    Attributes:
        name: in file names and flags.
        what: one line for people.
        package: the archive that holds it.
        files: patterns of member names, of which one must match (`*` also matches "/").
        without: patterns of member names that are left out.
        form: the name of the extractor.
        licence: of the text.
        stated: where that licence is stated.
        reason: why weights trained on it may be published.
        use: "text" to train on, "set" for a test set that training never sees.
        share_mb: most text taken of it, in MB; None for all.
        least_chars: shorter documents are left out.
    """

    name: str
    what: str
    package: Package
    files: tuple[str, ...]
    without: tuple[str, ...] = ()
    form: str
    licence: str
    stated: str
    reason: str
    use: Use = "text"
    share_mb: float | None = None
    least_chars: int = 250


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A source that was looked at and is not used, and why."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Document:
    """A text and what it is called within its source."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Question:
    """A question of a data set, its answer, and the passage that holds it ("" where there is none)."""

    question: str
    answer: str
    title: str
    passage: str


@dataclass(frozen=True, slots=True)
class Extracted:
    """What an archive gave: documents, and questions about some of them."""

    documents: tuple[Document, ...]
    questions: tuple[Question, ...] = ()
