"""Documentation that cannot rot: commands and flags exist, links lead somewhere, dependencies are explained.

Every line that starts with `$ ` in a console block is read. For make, the target must exist; for ssd-client and
ssd-cloud, the command and each flag must be in the real parser. A line that comes after `<!-- run -->` is also run.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
PROGRAMS = {"ssd-client": "ssd_client.cli.app", "ssd-cloud": "ssd_cloud.cli.app"}
BLOCK = re.compile(r"^(<!-- run -->\n+)?```(?:console|bash|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Line:
    """A command in a page."""

    page: str
    text: str
    run: bool

    @property
    def words(self) -> list[str]:
        """The command's words, without variables in front and pipes or `&` behind."""
        words = shlex.split(re.split(r"\s[|&>]\s?|\s#", self.text)[0])
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        return words


def lines() -> list[Line]:
    """All commands of all pages."""
    found = []
    for page in PAGES:
        for match in BLOCK.finditer(page.read_text("utf-8")):
            for line in match[2].replace("\\\n", " ").splitlines():
                if line.startswith("$ "):
                    found.append(Line(page.name, line[2:].strip(), bool(match[1])))
    return found


LINES = lines()
OURS = [line for line in LINES if line.words[0] in PROGRAMS]


def tree(program: str):
    """The program's commands, as its parser has them."""
    typer = importlib.import_module("typer")
    module = importlib.import_module(PROGRAMS[program])
    return typer.main.get_command(module.whole() if hasattr(module, "whole") else module.app)


def flags_of(command) -> set[str]:
    """Every flag of a command, `--no-...` forms included."""
    return {flag for p in command.params for flag in [*p.opts, *p.secondary_opts] if flag.startswith("-")} | {"--help"}


def resolve(line: Line):
    """The command that a line names, and the words after it."""
    program, *rest = line.words
    command = tree(program)
    while rest and hasattr(command, "commands") and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"{line.page}: {program} has no command {rest[0]!r}"
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


def test_there_are_commands_to_check():
    assert len(LINES) >= 20
    assert {line.words[0] for line in LINES} <= {"make", "ssd-client", "ssd-cloud"}


@pytest.mark.parametrize("line", OURS, ids=lambda line: f"{line.page}: {line.text}"[:80])
def test_command_and_flags_exist(line: Line):
    command, rest = resolve(line)
    unknown = {word.split("=")[0] for word in rest if re.match(r"--?[a-z]", word)} - flags_of(command)
    assert not unknown, f"{line.page}: {line.text}: no flag {sorted(unknown)}"


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for line in LINES:
        if line.words[0] == "make":
            assert line.words[1] in targets, f"{line.page}: {line.text}"


@pytest.mark.parametrize("line", [line for line in LINES if line.run], ids=lambda line: f"{line.page}: {line.text}")
def test_lines_marked_to_run_do(line: Line, tmp_path: Path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SSD_")}
    environment |= {"SSD_HOME": str(tmp_path / "home"), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    program, *rest = line.words
    script = Path(sys.executable).with_name(program)
    done = subprocess.run(
        [str(script), *rest], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for target in LINK.findall(page.read_text("utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", found.read_text("utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}, target


def test_every_page_of_the_book_is_in_its_index():
    index = (ROOT / "docs" / "index.md").read_text("utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in index, page.name


def test_every_dependency_is_explained():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    names = {re.split(r"[\[<>=~! ]", one)[0].lower() for one in wanted} - {"ssd2"}
    table = (ROOT / "docs" / "dependencies.md").read_text("utf-8")
    explained = set(re.findall(r"^\| ([a-z0-9-]+) \|", table, re.MULTILINE)) - {"package"}
    assert names <= explained, f"not explained: {sorted(names - explained)}"
    setup = (ROOT / ".ci" / "setup").read_text("utf-8")
    assert {name for name in explained - names if f"{name}==" not in setup} == set()


def test_every_dependency_has_a_fixed_release():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    names = {re.split(r"[\[<>=~! ]", one)[0].lower() for one in wanted} - {"ssd2", "torch", "triton"}
    fixed = re.findall(r"^([A-Za-z0-9_.-]+)==", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    assert names <= {name.lower().replace("_", "-") for name in fixed}


def test_the_promise_stands_in_its_fixed_wording():
    text = " ".join((ROOT / "docs" / "privacy.md").read_text("utf-8").replace("\n> ", "\n").split())
    assert text.count("Documents, expert weights and raw logits stay on the device.") == 1
    assert "so what the client sends is byte-identical whatever the documents are." in text
    assert "Before the first upload the user sees what will leave and agrees; `generate --dry-run` prints it." in text
    assert "Nothing beyond this is claimed." in text


def test_no_machine_leaks_into_the_repository():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    own = re.compile(r"/(home|root|work)/[a-z]|/opt/(wheels|pypi)")
    for name in tracked.stdout.splitlines():
        path = ROOT / name
        if path.suffix in {".md", ".py", ".toml", ".txt", ""} and path.is_file() and path.name != "test_docs.py":
            text = path.read_bytes().decode("utf-8", "replace")
            assert not own.search(text), f"{name}: {own.search(text)}"
