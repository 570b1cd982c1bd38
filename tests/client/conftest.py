"""What the device's tests share: tiny models, experts that run on torch in this process, homes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))


@pytest.fixture(scope="session")
def tiny_core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random core."""
    from ssd_diffusion.models.tiny import write_tiny

    return write_tiny(tmp_path_factory.mktemp("core") / "core", seed=1, learned=0.3)


@pytest.fixture(scope="session")
def tiny_experts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two tiny random experts with the core's vocabulary, and one with another."""
    from ssd_diffusion.models.tiny import write_tiny

    root = tmp_path_factory.mktemp("experts")
    return {
        "anna": write_tiny(root / "anna", seed=2, learned=0.3),
        "bert": write_tiny(root / "bert", seed=3, learned=0.3),
        "foreign": write_tiny(root / "foreign", seed=4, vocab=300),
    }


@pytest.fixture(scope="session")
def engines(tiny_experts: dict[str, Path]) -> dict[str, Any]:
    from answering_support import torch_engine

    return {name: torch_engine(path, slots=2) for name, path in tiny_experts.items()}


@pytest.fixture(scope="session")
def core_engine(tiny_core: Path) -> Any:
    from answering_support import torch_engine

    return torch_engine(tiny_core, slots=9)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with a fixed device secret."""
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(range(32)))
    monkeypatch.setenv("SSD_DEVICE_SECRET_FILE", str(secret))
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("SSD_HOME", str(folder))
    return folder


@pytest.fixture
def passages() -> list[Any]:
    """The passages that the experts of `on_torch` find; tests may fill it."""
    return []


@pytest.fixture
def on_torch(
    monkeypatch: pytest.MonkeyPatch, engines: dict[str, Any], tiny_experts: dict[str, Path], passages: list[Any]
) -> Callable[..., Any]:
    """Experts whose engine is the torch one, without store or index: what answering does apart from ONNX."""
    from ssd_client import answer
    from ssd_client.store import ExpertCard
    from ssd_diffusion.tokenizer import Tokenizer

    card = ExpertCard(
        name="", base="tiny", base_model_id="tiny@0", created="2026-01-01T00:00:00Z", documents=1,
        data_fingerprint="0" * 64, lam=0.6, alpha=0.5,
    )  # fmt: skip

    def open_expert(store: Any, name: str | None) -> Any:
        chosen = name or "anna"
        folder = tiny_experts[chosen]
        return answer.Expert(replace(card, name=chosen), folder, Tokenizer.load(folder), engines[chosen])

    monkeypatch.setattr(answer, "open_expert", open_expert)
    monkeypatch.setattr(answer, "find_passages", lambda *_: list(passages))
    return open_expert
