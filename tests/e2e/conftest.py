"""Real processes: a node with a tiny core, and a home with two registered tiny experts from two different folders."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

ANNA = {
    "staff/keys.md": "# Keys\n\nIlse Brandt holds the key to the red cabinet.\n",
    "staff/hours.md": "# Hours\n\nThe workshop opens at 7:40 and closes at 16:10.\n",
}
BERT = {"recipes.txt": "The glue of the house is four parts hide glue and one part honey.\n", "empty.md": "Nothing.\n"}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny model folders: the core, another core, a core with another vocabulary."""
    from ssd_diffusion.models.tiny import write_tiny

    root = tmp_path_factory.mktemp("models")
    return {
        "core": write_tiny(root / "core", seed=1, learned=0.3),
        "other": write_tiny(root / "other", seed=9, learned=0.3),
        "foreign": write_tiny(root / "foreign", seed=1, vocab=300),
    }


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of two tiny experts, exported once."""
    from answering_support import export_expert
    from ssd_diffusion.models.tiny import write_tiny

    root = tmp_path_factory.mktemp("exported")
    return {
        name: export_expert(write_tiny(root / f"{name}-model", seed=seed, learned=0.3), root / name)
        for name, seed in (("anna", 2), ("bert", 3))
    }


@pytest.fixture(scope="session")
def stocked(tmp_path_factory: pytest.TempPathFactory, exported: dict[str, Path]) -> Path:
    """A home with both experts and a fixed device secret; copied for every test."""
    from answering_support import register_expert

    root = tmp_path_factory.mktemp("stocked")
    home = root / "home"
    home.mkdir(mode=0o700)
    register_expert(home, "anna", exported["anna"], ANNA)
    register_expert(home, "bert", exported["bert"], BERT, lam=0.9, alpha=1.0)
    (home / "device-secret").write_bytes(bytes(range(32)))
    (home / "device-secret").chmod(0o600)
    return home


@pytest.fixture
def home(stocked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    target = tmp_path / "home"
    shutil.copytree(stocked, target)
    target.chmod(0o700)
    monkeypatch.setenv("SSD_HOME", str(target))
    return target


@pytest.fixture(scope="module")
def node(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A node process that is left alone."""
    from answering_support import NodeProcess

    with NodeProcess(tmp_path_factory.mktemp("node"), models["core"]) as process:
        process.start()
        yield process
