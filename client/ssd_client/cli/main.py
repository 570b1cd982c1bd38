"""The entry point `ssd-client`: its commands, and the one place where errors become sentences and exit codes.

Exit codes: 0 done, 1 could not be done, 2 bad input, 130 ctrl-C. Commands import what they need when they run, so that
`--help` is quick.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from typing import Annotated

import typer

from ssd_client import __version__
from ssd_client.cli import doctor, experts, generate, personalize
from ssd_client.cli.flags import EOF_HINT
from ssd_client.cli.screen import say
from ssd_client.errors import ClientError

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


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    logging.getLogger("grpc").addHandler(logging.NullHandler())
    logging.getLogger("grpc").propagate = False
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        say("stopped; nothing was lost")
        code = 130
    except BrokenPipeError:
        _discard_stdout()
        code = 1
    except ClientError as error:
        say(str(error))
        code = error.exit_code
    except Exception as error:
        if os.environ.get("SSD_DEBUG"):
            raise
        sentence, code = _sentence(error)
        say(sentence)
    sys.exit(code)


def _run(arguments: list[str] | None) -> int:
    from ssd_client.config import default_map, load_config

    command = typer.main.get_command(app)
    defaults = default_map(command, load_config())
    try:
        command.main(args=arguments, prog_name="ssd-client", default_map=defaults)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


def _sentence(error: Exception) -> tuple[str, int]:
    """An error from below, in one sentence, and its exit code."""
    from ssd_diffusion.errors import ContextOverflow, DiffusionError, InvalidStep
    from ssd_kernels.errors import KernelError

    if isinstance(error, ContextOverflow | InvalidStep):
        return str(error), 2
    if isinstance(error, DiffusionError | KernelError):
        return str(error), 1
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space and run the same command again", 1
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror or error}{where}; correct this and run the same command again", 1
    if isinstance(error, ImportError):
        return f"a package is missing ({error}); ssd-client doctor says what to install", 1
    if isinstance(error, MemoryError):
        return "there is not enough memory; close other programs, or use a smaller expert", 1
    return f"unexpected {type(error).__name__}: {error}; run again with SSD_DEBUG=1 and report what it prints", 1


def _discard_stdout() -> None:
    """The reader of our output went away: keep Python from complaining about it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
