"""A tiny pair for the benchmarks' tests: two random decoders of width 16 and a handful of passages."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory) -> tuple[Path, Path]:
    """Model folders of a tiny core and of a tiny expert's base."""
    from ssd_diffusion.models.tiny import write_tiny

    root = tmp_path_factory.mktemp("tiny")
    core = write_tiny(root / "core", family="llama", seed=0, vocab=300, learned=0.3)
    return core, write_tiny(root / "expert", family="llama", seed=1, vocab=300, learned=0.3)


@pytest.fixture
def tiny_pair(tiny_folders):
    """A pair on two torch engines; the expert has lambda .4 and alpha .5, and reads one passage."""
    from ssd_bench.pair import Pair
    from ssd_client.prompt import Passage
    from ssd_cloud.models import load
    from ssd_diffusion.ensemble import Weights
    from ssd_diffusion.tokenizer import Tokenizer

    core, expert = tiny_folders
    notes = [Passage("handbook/keys.md", "Spare key", "The spare key hangs behind the blue door.", 1.0)]
    return Pair(
        core=load(core, slots=1, batch_width=1, threads=None),
        expert=load(expert, slots=2, batch_width=1, threads=None),
        tokenizer=Tokenizer.load(core),
        weights=Weights(lam=0.4, alpha=0.5),
        retrieve=lambda _: notes,
        about="Tiny and random.",
    )
