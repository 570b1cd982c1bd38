"""Plans from shapes alone, against numbers worked out by hand."""

from __future__ import annotations

import json

import pytest
from ssd_cloud.errors import UsageError
from ssd_cloud.plan import SHAPES, find_gpu, find_shape, make, parse_bytes

PUBLISHED = {  # billions of parameters as published (norms, biases and projections left out here)
    "opt-125m": 0.125, "opt-1.3b": 1.316, "opt-2.7b": 2.652, "opt-6.7b": 6.658, "opt-13b": 12.853, "opt-30b": 29.974,
    "opt-66b": 65.72, "smollm2-135m": 0.1345, "smollm2-360m": 0.362, "smollm2-1.7b": 1.711, "llama-2-7b": 6.738,
    "llama-2-13b": 13.016, "llama-3-8b": 8.030, "llama-3-70b": 70.55,
}  # fmt: skip


@pytest.mark.parametrize(("name", "billions"), PUBLISHED.items())
def test_parameters(name, billions):
    shape = SHAPES[name]
    assert shape.parameters - shape.hidden**2 == pytest.approx(billions * 1e9, rel=0.006)


def test_opt_13b_on_80_gb():
    plan = make("opt-13b", SHAPES["opt-13b"], find_gpu("80GB"), context=2048, block=32)
    assert plan.cache_bytes_a_token == 2 * 40 * 5120 * 2 == 819_200
    assert plan.session_bytes == 2048 * 819_200 + 32 * (50_272 + 5120) * 4
    assert plan.weights_bytes == 2 * plan.parameters
    assert plan.sessions == (80_000_000_000 - 4_800_000_000 - plan.weights_bytes) // plan.session_bytes == 29
    one = plan.loads[0]
    read = plan.weights_bytes + 2048 * 819_200 + 32 * 50_272 * 4
    assert (one.sessions, one.bound_by) == (1, "memory")
    assert one.pass_ms == pytest.approx(read / 3.35e12 * 1e3)
    full = plan.loads[-1]
    layers = 40 * 12 * 5120**2
    flops = 29 * (2 * layers * 34 + 4 * 40 * 5120 * 2048 * 34 + 6 * 32 * 50_272 * 5120)
    assert full.bound_by == "arithmetic"
    assert full.tokens_a_second == pytest.approx(29 / (flops / 989e12))


def test_more_context_fits_fewer_sessions_and_acceptance_is_speed():
    def plan(**more):
        return make("x", SHAPES["opt-13b"], find_gpu("80GB"), **{"context": 2048, "block": 32, **more})

    assert plan(context=1024).sessions > plan().sessions > plan(dtype="fp32").sessions
    assert plan(accepted=3).loads[0].tokens_a_second == pytest.approx(3 * plan().loads[0].tokens_a_second)


def test_what_does_not_fit_has_no_speed():
    plan = make("opt-66b", SHAPES["opt-66b"], find_gpu("80GB"), context=2048, block=32)
    assert (plan.sessions, plan.loads) == (0, ())


@pytest.mark.parametrize(("text", "size"), [("80GB", 80 * 10**9), ("4GiB", 4 << 30), ("1.5 kb", 1500), ("17", 17)])
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "4 XB", "-1GB", "1e9", "nan"])
def test_no_sizes(text):
    with pytest.raises(UsageError):
        parse_bytes(text)


def test_gpus():
    assert find_gpu("h200").memory_bytes == 141 * 10**9
    assert find_gpu("80GB").name == "H100 80GB"
    odd = find_gpu("60GB")
    assert (odd.memory_bytes, "H100" in odd.name) == (60 * 10**9, True)


def test_shapes_from_a_model_folder(tmp_path):
    config = {"num_attention_heads": 9, "num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536,
              "num_key_value_heads": 3, "vocab_size": 49_152, "tie_word_embeddings": True}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert find_shape(str(tmp_path)) == SHAPES["smollm2-135m"]
    (tmp_path / "config.json").write_text(json.dumps({
        "num_attention_heads": 12, "num_hidden_layers": 12, "hidden_size": 768, "ffn_dim": 3072, "vocab_size": 50_272,
        "max_position_embeddings": 2048}))  # fmt: skip
    assert find_shape(str(tmp_path)) == SHAPES["opt-125m"]
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UsageError):
        find_shape(str(tmp_path))
    with pytest.raises(UsageError, match="opt-13b"):
        find_shape("opt-14b")


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"num_attention_heads": 0},
        {"num_attention_heads": 2, "num_hidden_layers": 2, "hidden_size": 0, "intermediate_size": 8, "vocab_size": 9},
        [1],
        None,
    ],
)
def test_a_folder_whose_sizes_cannot_be_is_named(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"config\.json"):
        find_shape(str(tmp_path))
