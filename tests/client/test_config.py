"""Flag beats variable beats file, through a real command line; unknown keys are named in one sentence."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from ssd_client.config import config_path, default_map, load_config
from ssd_client.errors import ConfigError


def application(seen: dict[str, Any]) -> typer.Typer:
    app, sub = typer.Typer(), typer.Typer()

    @app.command()
    def generate(
        prompt: str,
        node: Annotated[str, typer.Option(envvar="SSD_NODE")] = "localhost",
        max_tokens: Annotated[int, typer.Option(envvar="SSD_MAX_TOKENS")] = 1,
        offline: Annotated[bool, typer.Option("--offline")] = False,
    ) -> None:
        seen.update(prompt=prompt, node=node, max_tokens=max_tokens, offline=offline)

    @sub.command("show")
    def ledger_show(limit: Annotated[int, typer.Option()] = 5, node: Annotated[str, typer.Option()] = "") -> None:
        seen.update(limit=limit, node=node)

    app.add_typer(sub, name="ledger")
    return app


def run(text: str, *args: str) -> dict[str, Any]:
    import tomllib

    seen: dict[str, Any] = {}
    command = typer.main.get_command(application(seen))
    command(list(args), standalone_mode=False, default_map=default_map(command, tomllib.loads(text)))
    return seen


def test_flag_beats_variable_beats_file(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "[generate]\nnode = 'file'\nmax-tokens = 7\noffline = true"
    assert run("", "generate", "x") == {"prompt": "x", "node": "localhost", "max_tokens": 1, "offline": False}
    assert run(text, "generate", "x") == {"prompt": "x", "node": "file", "max_tokens": 7, "offline": True}
    monkeypatch.setenv("SSD_NODE", "variable")
    assert run(text, "generate", "x")["node"] == "variable"
    assert run(text, "generate", "x", "--node", "flag")["node"] == "flag"
    assert run(text, "generate", "x", "--node", "flag")["max_tokens"] == 7


def test_top_keys_hold_for_every_command_and_tables_for_one() -> None:
    text = "node = 'all'\n[ledger.show]\nlimit = 9\n[generate]\nmax_tokens = 3"
    assert run(text, "ledger", "show") == {"limit": 9, "node": "all"}
    assert run(text, "generate", "x")["node"] == "all"
    assert run("node = 'all'\n[generate]\nnode = 'one'", "generate", "x")["node"] == "one"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nod = 'x'", "'nod', which is no setting; did you mean 'node'"),
        ("[generate]\nmax-token = 3", "'generate.max-token'.*did you mean 'max-tokens'"),
        ("[generat]\nnode = 'x'", "'generat'.*did you mean 'generate'"),
        ("[ledger.shw]\nlimit = 1", "'ledger.shw'.*did you mean 'show'"),
        ("[generate]\nprompt = 'x'", "'generate.prompt'"),
        ("generate = 3", "'generate' to a value; write a table"),
        ("[[generate]]\nx = 3", "'generate' to a value; write a table"),
        ("[node]\nx = 1", "'node' to a table; write a value"),
        ("[generate]\nmax-tokens = {a = 1}", "'generate.max-tokens' to a table; write a value"),
        ("zzzzzz = 1", "known are: "),
    ],
)
def test_unknown_keys_are_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(text, "generate", "x")


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.one_of(st.integers(), st.text(max_size=4)), max_size=3))
def test_any_key_is_used_or_named(table: dict[str, Any]) -> None:
    command = typer.main.get_command(application({}))
    known = {"node", "max_tokens", "offline", "limit"}
    if {key.replace("-", "_") for key in table} <= known:
        default_map(command, table)
    else:
        with pytest.raises(ConfigError):
            default_map(command, table)


def test_where_the_file_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("SSD_CONFIG", raising=False)
    assert config_path().name == "config.toml"
    assert load_config() == {}
    monkeypatch.setenv("SSD_CONFIG", str(tmp_path / "mine.toml"))
    with pytest.raises(ConfigError, match="there is no configuration file"):
        load_config()
    (tmp_path / "mine.toml").write_text("node = 'x'")
    assert load_config() == {"node": "x"}
    (tmp_path / "mine.toml").write_text("node = ")
    with pytest.raises(ConfigError, match="cannot read"):
        load_config()
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("~nobody-of-that-name/x")):
        with pytest.raises(ConfigError, match="cannot read"):
            load_config(path)
