"""Settings from the configuration file: flag beats environment variable beats file.

The file is config.toml in the user's configuration folder ($SSD_CONFIG names another one). Keys are flags without the
leading dashes. A key at the top holds for every command that has the flag; a table holds for one command, and a table
within it for its subcommand:

    node = "gpu.example.org:7411"
    [generate]
    max-tokens = 200

The command line reads it through click's `default_map`, whose place is below flags and environment variables. Knows no
flag itself: it is shown the command tree.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import platformdirs

from ssd_client.errors import ConfigError

FILE_NAME = "config.toml"
PATH_VARIABLE = "SSD_CONFIG"


class Parameter(Protocol):
    """What is read of a click parameter."""

    name: str | None


class Command(Protocol):
    """What is read of a click command; groups also have `commands`."""

    params: list[Any]


def config_path() -> Path:
    """Where the configuration file is, whether or not it exists."""
    named = os.environ.get(PATH_VARIABLE)
    return Path(named) if named else Path(platformdirs.user_config_dir("ssd2")) / FILE_NAME


def load_config(path: Path | None = None) -> dict[str, Any]:
    """The file's keys and tables; empty where there is no file.

    Raises:
        ConfigError: not readable or not TOML, or $SSD_CONFIG names a file that is not there.
    """
    chosen = config_path() if path is None else path
    try:
        chosen = chosen.expanduser()
        if chosen.exists() and not chosen.is_file():  # a pipe may never end
            raise OSError("it is not a plain file")
        return tomllib.loads(chosen.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if path is None and not os.environ.get(PATH_VARIABLE):
            return {}
        raise ConfigError(f"there is no configuration file {chosen}; write one, or leave it out") from error
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: the ~ of nobody; ValueError: not TOML
        raise ConfigError(f"cannot read the configuration file {chosen} ({error}); correct or remove it") from error


def default_map(command: Command, config: Mapping[str, Any]) -> dict[str, Any]:
    """click's `default_map` for a command tree.

    Args:
        command: the top command (from `typer.main.get_command(app)`).
        config: what `load_config` gave.

    Raises:
        ConfigError: a key that no command has, or a table that is no command; names the nearest that exists.
    """
    shared = {_parameter(key): value for key, value in config.items() if not isinstance(value, dict)}
    used: set[str] = set()
    result = _map(command, config, shared, used, "")
    unused = [key for key, value in config.items() if not isinstance(value, dict) and _parameter(key) not in used]
    if unused:
        _unknown(unused[0], "", sorted(_all_names(command)))
    return result


def _map(
    command: Command, table: Mapping[str, Any], shared: Mapping[str, Any], used: set[str], at: str
) -> dict[str, Any]:
    names = _names(command)
    children: Mapping[str, Command] = getattr(command, "commands", {})
    result = {name: value for name, value in shared.items() if name in names}
    used.update(result)
    for key, value in table.items():
        if key in children and isinstance(value, dict):
            continue
        if _parameter(key) in names and not isinstance(value, dict):
            result[_parameter(key)] = value
        elif key in children:
            raise ConfigError(f"the configuration file sets {at + key!r} to a value; write a table, or remove it")
        elif isinstance(value, dict) and _flag(key) in _all_names(command):
            raise ConfigError(f"the configuration file sets {at + key!r} to a table; write a value, or remove it")
        elif at or isinstance(value, dict):
            _unknown(key, at, sorted({*(_flag(name) for name in names), *children}))
    for key, child in children.items():
        value = table.get(key, {})
        if isinstance(value, dict) and (mapped := _map(child, value, shared, used, f"{at}{key}.")):
            result[key] = mapped
    return result


def _names(command: Command) -> set[str]:
    """Parameters of a command that a file may set: its options, not its arguments and not --help."""
    return {
        param.name
        for param in command.params
        if param.name and param.name != "help" and getattr(param, "param_type_name", "option") == "option"
    }


def _all_names(command: Command) -> set[str]:
    children: Mapping[str, Command] = getattr(command, "commands", {})
    own = {_flag(name) for name in _names(command)} | set(children)
    return own.union(*(_all_names(child) for child in children.values()))


def _unknown(key: str, at: str, known: list[str]) -> None:
    near = difflib.get_close_matches(_flag(key), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(known)}"
    raise ConfigError(f"the configuration file sets {at + key!r}, which is no setting; {hint}")


def _parameter(key: str) -> str:
    return key.replace("-", "_")


def _flag(name: str) -> str:
    return name.replace("_", "-")
