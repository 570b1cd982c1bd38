"""`ssd-client list`, `show`, `rm` and `ledger`: what is on this device, and what left it.

Knows nothing about how experts are made or used.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ssd_client.cli.flags import JSON, flag

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from ssd_client.ledger import Entry
    from ssd_client.store import ExpertCard, Store


def list_experts(json: Annotated[bool, JSON] = False) -> None:
    """List the experts."""
    from rich.table import Table

    from ssd_client.cli.screen import OUT, bytes_text, print_json, say

    store = _store()
    cards = store.list()
    for name, reason in store.damaged():
        say(f"expert {name} cannot be used: {reason}")
    if json:
        print_json([card.summary() for card in cards])
        return
    if not cards:
        OUT.print("No expert yet; make one with: ssd-client personalize DIR --name NAME", soft_wrap=True)
        return
    table = Table(
        "name", "base", "made", "documents", "size", "held-out, before", "after", box=None, header_style="bold"
    )
    for card in cards:
        table.add_row(
            card.name, card.base, card.created[:16].replace("T", " "), str(card.documents), bytes_text(card.size_bytes),
            _nats(card.heldout_before), _nats(card.heldout_after),
        )  # fmt: skip
    OUT.print(table)


def show(name: Annotated[str, typer.Argument(help="Name of the expert.")], json: Annotated[bool, JSON] = False) -> None:
    """Show an expert's model card."""
    from ssd_client.cli.personalize_card import sample_panel, score_grid
    from ssd_client.cli.screen import OUT, facts, print_json

    store = _store()
    card = store.show(name)
    if json:
        print_json(asdict(card))
        return
    OUT.print(facts(_card_rows(card, str(store.open(name)))))
    for part in (score_grid(card), sample_panel(card)):
        if part is not None:
            OUT.print()
            OUT.print(part)


def rm(
    name: Annotated[str, typer.Argument(help="Name of the expert.")],
    yes: Annotated[bool, flag("--yes", "Do not ask.", "-y")] = False,
    json: Annotated[bool, JSON] = False,
) -> None:
    """Remove an expert: its weights, its index and what its personalization kept. Your documents stay."""
    import sys

    from ssd_client.cli.screen import ERR, OUT, print_json
    from ssd_client.errors import ConsentNeeded

    store = _store()
    if not yes:
        if not (sys.stdin.isatty() and ERR.is_terminal):
            raise ConsentNeeded(f"removing {name} cannot be undone; agree with: ssd-client rm {name} --yes")
        if ERR.input(f"Remove expert {name} for good? [y/N] ", markup=False).strip().lower() not in ("y", "yes"):
            raise ConsentNeeded(f"expert {name} was kept")
    store.remove(name)
    if json:
        print_json({"removed": name})
    else:
        OUT.print(f"Expert {name} is removed; the documents it was made from are untouched.", soft_wrap=True)


def ledger(
    limit: Annotated[int, flag("--limit", "Newest messages to show.", min=1)] = 50,
    session: Annotated[str | None, flag("--session", "Only one answer, by its session.")] = None,
    withdraw: Annotated[str | None, flag("--withdraw", "Take back the agreement for a node, as listed here.")] = None,
    json: Annotated[bool, JSON] = False,
) -> None:
    """Show everything that was sent from this device: when, to whom, what kind, how many bytes."""
    from ssd_diffusion.home import home

    from ssd_client.answer import LEDGER_FILE
    from ssd_client.cli.screen import OUT, print_json
    from ssd_client.ledger import Ledger

    with Ledger(home() / LEDGER_FILE) as book:
        if withdraw is not None:
            count = book.withdraw(withdraw)
            if json:
                print_json({"withdrawn": count})
            else:
                OUT.print(f"{count} agreement(s) for {withdraw} are taken back; you will be asked again.")
            return
        entries, totals = book.entries(limit, session), book.totals(session)
    if json:
        print_json({"entries": [asdict(one) for one in entries], "totals": asdict(totals)})
        return
    OUT.print(_ledger_table(entries) if entries else "Nothing was ever sent from this device.")
    if totals.messages:
        from ssd_client.cli.screen import bytes_text

        OUT.print(f"{totals.messages} messages, {bytes_text(totals.size_bytes)} in all", style="dim")


def _store() -> Store:
    from ssd_diffusion.home import home

    from ssd_client.store import Store

    return Store(home())


def _nats(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _card_rows(card: ExpertCard, folder: str) -> list[tuple[str, str | Text]]:
    from ssd_client.cli.personalize_card import calibration_rows, training_rows
    from ssd_client.cli.screen import bytes_text

    return [
        ("name", card.name),
        ("base", f"{card.base} ({card.base_model_id})"),
        ("made", card.created),
        ("documents", f"{card.documents}, fingerprint {card.data_fingerprint[:16]}"),
        (
            "held-out loss",
            f"{_nats(card.heldout_before) or '-'} before, {_nats(card.heldout_after) or '-'} after "
            "  (S1, nats a token; lower is better)",
        ),
        *calibration_rows(card),
        *training_rows(card),
        ("size", bytes_text(card.size_bytes)),
        ("folder", folder),
    ]


def _ledger_table(entries: list[Entry]) -> Table:
    from rich.table import Table

    table = Table("when (UTC)", "to", "answer", "kind", "bytes", "sha256", box=None, header_style="bold")
    for entry in entries:
        table.add_row(
            entry.at[:23].replace("T", " "), entry.node, entry.session, entry.kind, str(entry.size_bytes),
            entry.sha256[:16],
        )  # fmt: skip
    return table
