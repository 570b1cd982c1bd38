"""The data card: what the data is made of, under which terms, what was dropped and why, and a hash of every file.

It holds no time and no path of a machine, so that the same build writes the same card. Knows nothing about how data is
made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ssd_cloud.corpus.fetch import Fetched
from ssd_cloud.corpus.model import LeftOut, Source

JSON_CARD, CARD = "card.json", "card.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What one source gave.

    Attributes:
        source: its registry entry.
        fetched: its archive.
        documents, bytes: training text.
        heldout_documents, heldout_bytes: held-out text.
        tokens: of the training text, the end of each document included.
        dropped: how many documents were left out, by reason.
    """

    source: Source
    fetched: Fetched
    documents: int
    bytes: int
    heldout_documents: int
    heldout_bytes: int
    tokens: int
    dropped: dict[str, int]


def write_card(
    folder: Path,
    lines: Sequence[Line],
    *,
    options: dict[str, Any],
    pairs: dict[str, dict[str, Any]],
    ids: dict[str, Any],
    sets: Sequence[str],
    missing: dict[str, str],
    left_out: Sequence[LeftOut],
) -> dict[str, Any]:
    """Write card.json and card.md beside the files that they describe.

    Args:
        folder: whose files are hashed.
        lines: one for each source.
        options: seed and limits of the build.
        pairs: rows by file.
        ids: the index of the token ids.
        sets: test sets that training was checked against.
        missing: packages that could not be fetched, and why.
        left_out: sources that are not used.

    Returns:
        The card.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    card = {
        "options": options,
        "sources": [_line(line) for line in lines],
        "pairs": pairs,
        "tokens": {part: sum(s["tokens"] for s in shards) for part, shards in ids["parts"].items()},
        "tokenizer": {key: ids[key] for key in ("vocab", "fingerprint", "eos", "dtype")},
        "checked_against": list(sets),
        "missing": missing,
        "left_out": [asdict(one) for one in left_out],
        "files": {str(p.relative_to(folder)): _sha256(p) for p in files},
    }
    (folder / JSON_CARD).write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / CARD).write_text(_markdown(card), encoding="utf-8")
    return card


def _line(line: Line) -> dict[str, Any]:
    source = line.source
    return {
        "name": source.name, "what": source.what, "licence": source.licence, "stated": source.stated,
        "reason": source.reason, "package": source.package.name, "client": source.package.client,
        "version": line.fetched.version, "sha256": line.fetched.sha256, "documents": line.documents,
        "bytes": line.bytes, "tokens": line.tokens, "heldout_documents": line.heldout_documents,
        "heldout_bytes": line.heldout_bytes, "dropped": line.dropped,
    }  # fmt: skip


def table(card: dict[str, Any]) -> str:
    """The card's sources as a Markdown table."""
    rows = [
        "| source | what | package | licence | documents | MB | tokens | dropped |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in card["sources"]:
        dropped = sum(one["dropped"].values())
        rows.append(
            f"| {one['name']} | {one['what']} | {one['package']} {one['version']} | {one['licence']} | "
            f"{one['documents']:,} | {one['bytes'] / 1e6:.1f} | {one['tokens']:,} | {dropped:,} |"
        )
    documents, size, tokens = (sum(one[key] for one in card["sources"]) for key in ("documents", "bytes", "tokens"))
    dropped = sum(sum(one["dropped"].values()) for one in card["sources"])
    rows.append(f"| all | | | | {documents:,} | {size / 1e6:.1f} | {tokens:,} | {dropped:,} |")
    return "\n".join(rows)


def _markdown(card: dict[str, Any]) -> str:
    reasons: dict[str, int] = {}
    for one in card["sources"]:
        for reason, count in one["dropped"].items():
            reasons[reason] = reasons.get(reason, 0) + count
    parts = [
        "# Training data", table(card), "## Dropped documents",
        "\n".join(f"- {reason}: {count:,}" for reason, count in sorted(reasons.items())) or "none",
        "## Pairs", "\n".join(f"- {name}: {one['rows']:,} rows" for name, one in sorted(card["pairs"].items())),
        "## Why weights may be published",
        "\n".join(f"- {s['name']}: {s['licence']} ({s['stated']}); {s['reason']}" for s in card["sources"]),
        "## Left out", "\n".join(f"- {one['name']}: {one['why']}" for one in card["left_out"]),
        f"Checked against: {', '.join(card['checked_against']) or 'nothing'}.",
    ]  # fmt: skip
    if card["missing"]:
        parts.append("Missing: " + "; ".join(f"{name} ({why})" for name, why in sorted(card["missing"].items())))
    return "\n\n".join(parts) + "\n"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
