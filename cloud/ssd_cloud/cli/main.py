"""The entry point `ssd-cloud`: the one place where errors become sentences and exit codes.

It imports nothing but the standard library until it runs, so that Ctrl-C is answered in one word at any moment.
"""

from __future__ import annotations

import os
import sys


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits with 0, 1 (could not be done), 2 (bad input) or 130 (Ctrl-C)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        from ssd_cloud.cli.app import run

        run(given)
    except KeyboardInterrupt:
        _fail("stopped", 130)
    except BrokenPipeError:
        os._exit(1)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        _fail(f"{error.strerror or error}{where}", 1)
    except Exception as error:  # the packages' own errors, whose names are known only once they are loaded
        code = _exit_code(error)
        if code is None:
            raise
        _fail(str(error), code)


def __getattr__(name: str) -> object:
    """`app`, the whole command tree, for whoever documents it."""
    if name == "app":
        from ssd_cloud.cli.app import whole

        return whole()
    raise AttributeError(name)


def _exit_code(error: Exception) -> int | None:
    from ssd_diffusion.errors import DiffusionError
    from ssd_kernels.errors import KernelError

    from ssd_cloud.errors import NodeError, UsageError

    if isinstance(error, UsageError):
        return 2
    return 1 if isinstance(error, NodeError | DiffusionError | KernelError | ImportError) else None


def _fail(sentence: str, code: int) -> None:
    sys.stderr.write(f"ssd-cloud: {sentence}\n")
    sys.exit(code)


if __name__ == "__main__":
    main()
