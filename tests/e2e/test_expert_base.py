"""From an OPT core to an answer, every command as a process: adapt the core and serve it, put another model's base into
its vocabulary, personalize that on documents, and let the two write one answer.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from answering_support import TOKEN, NodeProcess, client, environment
from opt_vocabulary import real_opt, write_published, write_tiny_opt
from ssd_diffusion.models.tiny import write_tiny

pytestmark = pytest.mark.slow

QUESTION = "When does the workshop open?"
WORDS = "The workshop opens at {0}:40 and Ilse hangs key number {0} on hook {1}; the glue pot stays on shelf {1}. "


def cloud(home: Path, *arguments: str, **more: str) -> dict[str, Any]:
    """`ssd-cloud` as a process; what it prints with --json."""
    done = subprocess.run(
        [sys.executable, "-m", "ssd_cloud.cli.main", *arguments, "--json"], env=environment(home, **more),
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def write_core(folder: Path, vocabulary: Path) -> Path:
    """A plain OPT folder as one is published: random weights, padded rows, the tokenizer in its two files."""
    tokens = len(json.loads((vocabulary / "vocab.json").read_text()))
    write_published(folder, vocabulary)
    torch.manual_seed(4)
    config = transformers.OPTConfig(
        vocab_size=-(-tokens // 16) * 16, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=64,
        word_embed_proj_dim=32, max_position_embeddings=1024, dropout=0.0, init_std=0.3, bos_token_id=2,
        eos_token_id=2, pad_token_id=1,
    )  # fmt: skip
    transformers.OPTForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("which", ["made", "real"])
def test_an_expert_joins_a_core_of_opts_vocabulary(tmp_path: Path, which: str) -> None:
    files = write_tiny_opt(tmp_path / "files") if which == "made" else real_opt()
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    documents = tmp_path / "documents"
    documents.mkdir()
    for i in range(1, 9):
        (documents / f"note{i}.md").write_text(f"# Note {i}\n\n" + "".join(WORDS.format(i, i * j) for j in range(1, 9)))

    plain = write_core(tmp_path / "plain", files)
    core = tmp_path / "core"
    cloud(home, "adapt", "--base", str(plain), "--data", str(documents), "--out", str(core), "--steps", "2",
          "--length", "48", "--block", "8", "--heldout-rows", "0")  # fmt: skip
    source = write_tiny(tmp_path / "source", seed=6, learned=0.3)
    base = tmp_path / "base"
    made = cloud(home, "expert-base", str(base), "--tokenizer", "opt", "--from", str(source), SSD_OPT_VOCAB=str(files))
    by_folder = cloud(home, "expert-base", str(tmp_path / "again"), "--tokenizer", str(plain), "--from", str(source))
    described = json.loads((core / "model.json").read_text())
    assert made["tokenizer_fingerprint"] == by_folder["tokenizer_fingerprint"] == described["tokenizer_fingerprint"]
    assert made["rows"] == by_folder["rows"]

    learned = client(
        home, "personalize", str(documents), "--name", "notes", "--base", str(base), "--max-minutes", "0.1", "--json",
        timeout=300,
    )  # fmt: skip
    assert learned.returncode == 0, learned.stderr
    assert json.loads(learned.stdout)["base_model_id"] == made["model_id"]

    with NodeProcess(tmp_path / "node", core) as node:
        assert node.start()["tokenizer"]
        given = ["generate", QUESTION, "--expert", "notes", "--node", node.target, "--token", TOKEN, "--seed", "5",
                 "--max-tokens", "12", "--temperature", "1", "--lam", "0.5", "--yes", "--json"]  # fmt: skip
        answers = [json.loads(_done(client(home, *given)).stdout) for _ in range(2)]
        other = json.loads(_done(client(home, *given, "--seed", "6")).stdout)
    assert answers[0]["text"] == answers[1]["text"] != other["text"]
    assert answers[0]["passages"]
    assert answers[0]["core_steps"] > 0
    assert answers[0]["bytes_down"] > 0


def _done(process: Any) -> Any:
    assert process.returncode == 0, process.stderr
    return process
