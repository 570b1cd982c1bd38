"""The node's configuration file: a TOML table for each command, its keys named as the flags (`max_sessions = 8`).

A flag beats its environment variable, and that beats the file. Knows nothing about what the keys mean.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs

from ssd_cloud.errors import UsageError


def path() -> Path:
    """$SSD_CONFIG, or node.toml in this user's configuration folder."""
    chosen = os.environ.get("SSD_CONFIG")
    return Path(chosen) if chosen else Path(platformdirs.user_config_dir("ssd2")) / "node.toml"


def defaults(known: Mapping[str, frozenset[str] | None]) -> dict[str, dict[str, Any]]:
    """Defaults from the file, by command.

    Args:
        known: the keys that each command takes; None where they are not known now and not checked.

    Raises:
        UsageError: the file is not TOML, or names a command or key that does not exist.
    """
    file = path()
    try:
        file = file.expanduser()
        if file.exists() and not file.is_file():  # a pipe may never end
            raise OSError("it is not a plain file")
        stored = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if os.environ.get("SSD_CONFIG"):
            raise UsageError(f"there is no configuration file {file}; correct SSD_CONFIG or unset it") from None
        return {}
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: the ~ of nobody; ValueError: not TOML
        raise UsageError(f"the configuration file {file} cannot be read ({error}); correct or remove it") from error
    for command, keys in stored.items():
        if command not in known or not isinstance(keys, dict):
            raise UsageError(f"{file} has no use for {command!r}; its tables are {', '.join(sorted(known))}")
        takes = known[command]
        unknown = sorted(set(keys) - takes) if takes is not None else []
        if unknown:
            raise UsageError(f"{file} has no use for {unknown[0]!r} in [{command}]; see ssd-cloud {command} --help")
    return stored
