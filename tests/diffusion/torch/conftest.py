"""Tiny random decoders in float64, so that equalities are tight."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from ssd_diffusion.engine import ModelSpec
from ssd_diffusion.models.ssd2 import Ssd2Model

VOCAB, HIDDEN = 256, 16


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(family: str, *, seed: int = 0, learned: float = 0.0, attention: str = "sdpa", padded: int = 4) -> Ssd2Model:
    """A random model of V 256 with padded vocabulary rows; `learned` scales a change to w_diff and w_time."""
    torch.manual_seed(seed)
    shared: dict[str, Any] = {
        "vocab_size": VOCAB + padded, "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 512, "tie_word_embeddings": True, "attn_implementation": attention,
    }  # fmt: skip
    causal: Any
    if family == "llama":
        config = transformers.LlamaConfig(**shared, intermediate_size=32, num_key_value_heads=1, initializer_range=0.3)
        causal = transformers.LlamaForCausalLM(config)
    else:
        causal = transformers.OPTForCausalLM(
            transformers.OPTConfig(**shared, ffn_dim=32, word_embed_proj_dim=HIDDEN, dropout=0.0, init_std=0.3)
        )
    model = Ssd2Model(causal.double().eval(), VOCAB)
    with torch.no_grad():
        model.w_diff.weight += learned * torch.randn_like(model.w_diff.weight) / 4
        model.w_time.weight += learned * torch.randn_like(model.w_time.weight)
        model.w_time.bias += learned * 0.1 * torch.randn_like(model.w_time.bias)
    return model.eval()


@pytest.fixture(params=["llama", "opt"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make_model() -> Callable[..., Ssd2Model]:
    return build


@pytest.fixture
def spec() -> ModelSpec:
    return ModelSpec(
        model_id="tiny@0", family="ssd2", vocab=VOCAB, hidden=HIDDEN, max_block=16, max_context=400, eos_ids=(0,)
    )
