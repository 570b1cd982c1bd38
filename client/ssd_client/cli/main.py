"""The entry point `ssd-client`, and the one place where errors become sentences and exit codes.

Exit codes: 0 done, 1 could not be done, 2 bad input, 130 ctrl-C. Imports next to nothing by itself, so that a ctrl-C is
answered from the first moment on.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Any


def __getattr__(name: str) -> Any:
    """`app`, the command tree, for whoever wants to look at it."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ssd_client.cli.app import app

    return app


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    try:
        from ssd_diffusion.terminal import open_streams, remember_interrupts

        remember_interrupts()
        open_streams()
        code = _run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        _say("stopped; nothing was lost")
        code = 130
    except BrokenPipeError:
        _discard_stdout()
        code = 1
    except Exception as error:
        if os.environ.get("SSD_DEBUG"):
            raise
        sentence, code = _sentence(error)
        _say(sentence)
    sys.exit(code)


def _run(arguments: list[str] | None) -> int:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    import logging

    import typer

    from ssd_client.cli.app import app
    from ssd_client.config import default_map, load_config
    from ssd_client.errors import ConsentNeeded

    logging.getLogger("grpc").addHandler(logging.NullHandler())
    logging.getLogger("grpc").propagate = False
    command = typer.main.get_command(app)
    defaults = default_map(command, load_config())
    try:
        ended = command.main(args=arguments, prog_name="ssd-client", default_map=defaults, standalone_mode=False)
    except SystemExit as pipe:  # typer's own way to say that the reader of our output went away
        return int(bool(pipe.code))
    except typer.Abort as error:
        raise ConsentNeeded("the question was not answered, so nothing was done; agree with --yes") from error
    if ended == 130:  # typer's own way to say ctrl-C
        raise KeyboardInterrupt
    return ended if isinstance(ended, int) else 0


def _sentence(error: Exception) -> tuple[str, int]:
    """An error from below, in one sentence, and its exit code."""
    from ssd_diffusion.errors import ContextOverflow, DiffusionError, InvalidStep
    from ssd_diffusion.terminal import usage_sentence

    from ssd_client.errors import ClientError

    if isinstance(error, ClientError):
        return str(error), error.exit_code
    if (wrong := usage_sentence(error)) is not None:
        return wrong, 2
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


def _say(sentence: str) -> None:
    from ssd_diffusion.terminal import printable

    if sentence:  # empty: the help was shown instead
        sys.stderr.write(f"ssd-client: {' '.join(printable(sentence).splitlines())}\n")


def _discard_stdout() -> None:
    """The reader of our output went away: keep Python from complaining about it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
