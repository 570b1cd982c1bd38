"""The command tree of `ssd-client`. Commands import what they need when they run, so that `--help` is quick."""

from __future__ import annotations

from typing import Annotated

import typer

from ssd_client import __version__
from ssd_client.cli import doctor, experts, generate, personalize
from ssd_client.cli.flags import EOF_HINT

app = typer.Typer(
    name="ssd-client",
    help="Your documents become an expert on this machine; it writes together with a big core on a node.",
    epilog=EOF_HINT,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
)
app.command("personalize")(personalize.personalize)
app.command("generate")(generate.generate)
app.command("list")(experts.list_experts)
app.command("show")(experts.show)
app.command("rm")(experts.rm)
app.command("ledger")(experts.ledger)
app.command("doctor")(doctor.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ssd-client {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass
