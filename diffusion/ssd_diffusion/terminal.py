"""What both command lines owe a terminal: open streams, text that it only shows, wrong flags in one sentence, ctrl-C.

Needs the standard library alone, so that it is there from the first moment on. Knows nothing about commands.
"""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import threading
from types import FrameType

_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_SURROGATES = re.compile(r"[\ud800-\udfff]")
_interrupted = threading.Event()


def printable(text: str) -> str:
    """Text of a file, a model or another machine without the characters that a terminal obeys instead of showing.

    Line ends and tabs stay. Bytes of a command line that are no UTF-8 become U+FFFD.
    """
    return _SURROGATES.sub("\ufffd", _OBEYED.sub("", text))


def remember_interrupts() -> None:
    """Keep in mind that ctrl-C was pressed, beside the usual KeyboardInterrupt.

    Python drops an exception that comes up in a callback of its own, such as a weak reference's, and complains: then
    ctrl-C would be lost. `stop_if_interrupted` raises it again.
    """

    def interrupted(_signal: int, _frame: FrameType | None) -> None:
        _interrupted.set()
        raise KeyboardInterrupt

    def dropped(what: sys.UnraisableHookArgs) -> None:
        if not issubclass(what.exc_type, KeyboardInterrupt):
            sys.__unraisablehook__(what)

    if threading.current_thread() is threading.main_thread():
        _interrupted.clear()
        sys.unraisablehook = dropped
        signal.signal(signal.SIGINT, interrupted)


def stop_if_interrupted() -> None:
    """To be called now and then by what takes long.

    Raises:
        KeyboardInterrupt: ctrl-C was pressed and dropped.
    """
    if _interrupted.is_set():
        _interrupted.clear()
        raise KeyboardInterrupt


def open_streams() -> None:
    """Make the standard streams ready for any text, closed ones and ones that are not UTF-8 included.

    A stream that was closed leads to nothing, so that no file opened later takes its place by number. A stdout of
    another encoding shows "?" for what it lacks.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        opened = os.open(os.devnull, os.O_RDWR)
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)
        setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def usage_sentence(error: Exception) -> str | None:
    """One sentence for what the parser of a command line refuses; None for any other error, "" where it gave help."""
    message = getattr(error, "format_message", None)
    if message is None:
        return None
    said = " ".join(str(message()).split()).rstrip(".")
    command = getattr(getattr(error, "ctx", None), "command_path", None)
    hint = f"; see {command} --help" if command and said else ""
    return said[:1].lower() + said[1:] + hint
