"""The entry point `ssd-cloud`: the one place where errors become sentences and exit codes.

It imports nothing but the standard library until it runs, so that Ctrl-C is answered in one word at any moment.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import NoReturn


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits with 0, 1 (could not be done), 2 (bad input) or 130 (Ctrl-C)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        from ssd_diffusion.terminal import open_streams

        open_streams()
        from ssd_cloud.cli.app import run

        code = run(given)
        sys.stdout.flush()
    except KeyboardInterrupt:
        _fail("stopped", 130)
    except BrokenPipeError:
        os._exit(1)
    except Exception as error:
        if os.environ.get("SSD_DEBUG"):
            raise
        _fail(*_sentence(error))
    sys.exit(code)


def __getattr__(name: str) -> object:
    """`app`, the whole command tree, for whoever documents it."""
    if name == "app":
        from ssd_cloud.cli.app import whole

        return whole()
    raise AttributeError(name)


def _sentence(error: Exception) -> tuple[str, int]:
    """An error in one sentence, and its exit code."""
    from ssd_diffusion.errors import DiffusionError
    from ssd_diffusion.terminal import usage_sentence
    from ssd_kernels.errors import KernelError

    from ssd_cloud.errors import NodeError, UsageError

    if isinstance(error, UsageError):
        return str(error), 2
    if (wrong := usage_sentence(error)) is not None:
        return wrong, 2
    if isinstance(error, NodeError | DiffusionError | KernelError | ImportError):
        return str(error), 1
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space and run the same command again", 1
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror or error}{where}; correct this and run the same command again", 1
    if isinstance(error, MemoryError):
        return "there is not enough memory; close other programs, or serve a smaller model", 1
    return f"unexpected {type(error).__name__}: {error}; run again with SSD_DEBUG=1 and report what it prints", 1


def _fail(sentence: str, code: int) -> NoReturn:
    from ssd_diffusion.terminal import printable

    if sentence:  # empty: the help was shown instead
        sys.stderr.write(f"ssd-cloud: {' '.join(printable(sentence).splitlines())}\n")
    sys.exit(code)


if __name__ == "__main__":
    main()
