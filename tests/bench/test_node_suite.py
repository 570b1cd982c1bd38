"""The node suite on tiny cores: real nodes, visits that a node takes, and what the report says of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ssd_bench import node as suite
from ssd_bench.node_run import Options, run
from ssd_bench.served import served
from ssd_client.node import NodeChannel
from ssd_diffusion.models.tiny import write_tiny


def test_a_node_under_sessions(tmp_path: Path) -> None:
    core = write_tiny(tmp_path / "tiny", learned=0.4)
    with served(core, tmp_path, sessions=3) as node, NodeChannel(node.address) as channel:
        info = channel.describe(20.0)
        several = suite.visits(info, 3, passes=5, longest=40, seed=1)
        assert [visit.tokens for visit in several] == [10, 10, 10]
        assert len({len(visit.opening.prompt_ids) for visit in several}) == 3
        for passes in (suite.one_by_one(channel, several), suite.at_once(channel, several)):
            assert len(passes) == 15
            assert all(one.seen >= one.computed > 0 for one in passes)
        assert len(suite.tokens_a_second(channel, several, 2)) == 2
        assert node.resident > 2**20


def test_a_node_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no model 'nothing'"), served(Path("nothing"), tmp_path, sessions=1):
        pass


def test_the_small_core_is_one_that_a_node_serves(tmp_path: Path) -> None:
    tokenizer = write_tiny(tmp_path / "tiny")
    parameters = suite.small_core(tmp_path / "small", tokenizer)
    assert 5e6 < parameters < 2e7
    with served(tmp_path / "small", tmp_path, sessions=2) as node, NodeChannel(node.address) as channel:
        assert channel.describe(20.0).spec.hidden == 256


@pytest.mark.slow
def test_a_run_writes_the_section_and_the_ratios(tmp_path: Path) -> None:
    core = write_tiny(tmp_path / "tiny", learned=0.4)
    run(Options(
        home=tmp_path, core=str(core), sessions=4, passes=4, longest=30, counts=(1, 2), out=tmp_path / "out",
        results=tmp_path / "r.json",
    ))  # fmt: skip
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert [(row["suite"], row["n"], row["target"]) for row in rows] == [("node", 7, 2.0), ("node", 7, None)]
    assert "Sessions on a node" in (tmp_path / "out" / "performance.md").read_text()
    assert (tmp_path / "out" / "performance" / "node.png").stat().st_size > 0
