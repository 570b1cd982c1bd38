"""Closed and narrow streams, text that a terminal would obey, and wrong flags in one sentence."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer
from ssd_diffusion.terminal import printable, usage_sentence


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é \u4e2d\tand\nlines", "plain é \u4e2d\tand\nlines"),
        ("\x1b[31mred\x1b]0;title\x07", "[31mred]0;title"),
        ("c1 \x9b2J back\x08space\r", "c1 2J backspace"),
        ("not UTF-8: \udcff", "not UTF-8: \ufffd"),
    ],
)
def test_nothing_that_a_terminal_obeys_is_left(text, shown):
    assert printable(text) == shown


def test_wrong_flags_are_a_sentence_and_other_errors_are_not():
    assert usage_sentence(typer.BadParameter("so it is not")) == "invalid value: so it is not"
    assert usage_sentence(ValueError("so it is not")) is None


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_streams_lead_to_nothing_and_keep_their_numbers(closed, tmp_path):
    code = (
        "import os, sys\nfrom ssd_diffusion.terminal import open_streams\nopen_streams()\n"
        "assert sys.stdin.read() == ''\n"
        "print('out', flush=True)\nprint('err', file=sys.stderr, flush=True)\n"
        "os.close(1), os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)\nsys.exit(os.open(sys.argv[1], os.O_RDONLY) < 3)"
    )
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", code, str(tmp_path / "file")]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    assert done.returncode == 0, done.stderr
    assert ("out" in done.stdout, "err" in done.stderr) == ("1>" not in closed, "2>" not in closed)


def test_a_stream_of_another_encoding_shows_what_it_can():
    code = "from ssd_diffusion.terminal import open_streams\nopen_streams()\nprint('caf\\xe9')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONIOENCODING": "ascii"}, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, b"caf?\n")


def test_a_ctrl_c_that_python_drops_is_raised_again_once():
    code = (
        "import os, signal, weakref\n"
        "from ssd_diffusion.terminal import remember_interrupts, stop_if_interrupted\n"
        "class Thing: pass\n"
        "remember_interrupts()\n"
        "stop_if_interrupted()\n"
        "thing = Thing()\n"
        "seen = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGINT))\n"
        "del thing\n"
        "print('dropped')\n"
        "try: stop_if_interrupted()\n"
        "except KeyboardInterrupt: print('raised')\n"
        "stop_if_interrupted()\n"
        "print('once')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.split(), done.stderr) == (["dropped", "raised", "once"], "")
