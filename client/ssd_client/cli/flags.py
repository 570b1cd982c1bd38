"""Flags that commands share. Every flag has an environment variable SSD_<FLAG>; the command line wins over it.

Knows nothing about what the flags do.
"""

from __future__ import annotations

from typing import Any

import typer


def flag(name: str, help_text: str, *more: str, **settings: Any) -> Any:
    """An option `--name` with the variable SSD_NAME."""
    variable = "SSD_" + name.lstrip("-").replace("-", "_").upper()
    return typer.Option(name, *more, help=help_text, envvar=variable, show_envvar=False, **settings)


JSON = flag("--json", "Print one JSON document on stdout and nothing else.")
EOF_HINT = "Every flag has an environment variable (SSD_ and the flag's name) and a key in the configuration file."
