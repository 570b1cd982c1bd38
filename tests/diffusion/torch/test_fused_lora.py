"""LoRA layers in one step against peft's own, forwards and backwards; and the causal attention of training."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.training import lora
from ssd_diffusion.training.attention import causal, causal_pass
from ssd_diffusion.training.fused_lora import fused
from ssd_diffusion.training.objective import causal_hidden
from torch import Tensor

Make = Callable[..., Ssd2Model]


def adapted(make_model: Make, family: str, *, dropout: float = 0.0) -> Ssd2Model:
    """A model whose adapter says something."""
    model = make_model(family)
    lora.attach(model, lora.LoraOptions(rank=4, alpha=6, dropout=dropout), seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) / 3)
    return model


def slopes(model: Ssd2Model, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Hidden states, and the gradients of a sum that weighs them."""
    model.zero_grad()
    hidden = causal_hidden(model, tokens)
    (hidden * torch.linspace(-1, 1, hidden.numel(), dtype=hidden.dtype).view_as(hidden)).sum().backward()  # type: ignore[no-untyped-call]
    return hidden.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_it_is_what_peft_computes(make_model: Make, family: str) -> None:
    model, tokens = adapted(make_model, family), torch.arange(26).view(2, 13)
    hidden, gradients = slopes(model, tokens)
    with fused(model):
        ours, mine = slopes(model, tokens)
        with lora.without_adapter(model):
            plain = causal_hidden(model, tokens).detach()
    torch.testing.assert_close(ours, hidden, rtol=1e-10, atol=1e-10)
    assert mine.keys() == gradients.keys()
    assert sum("lora_" in name for name in mine) > 10
    for name, slope in gradients.items():
        assert mine[name].dtype == slope.dtype
        torch.testing.assert_close(mine[name], slope, rtol=1e-5, atol=1e-6)  # peft rounds to its float32
    with lora.without_adapter(model):
        torch.testing.assert_close(plain, causal_hidden(model, tokens).detach(), rtol=1e-10, atol=1e-10)


def test_afterwards_the_layers_are_peft_s(make_model: Make) -> None:
    model = adapted(make_model, "llama")
    layers = [part for part in model.modules() if hasattr(part, "lora_A")]
    with fused(model):
        assert all("forward" in vars(layer) for layer in layers)
    assert not any("forward" in vars(layer) for layer in layers)


def test_layers_with_dropout_stay_with_peft(make_model: Make) -> None:
    model = adapted(make_model, "llama", dropout=0.1)
    with fused(model):
        assert not any("forward" in vars(part) for part in model.modules())


def test_in_bfloat16_the_gradients_are_nearly_those(make_model: Make) -> None:
    model, tokens = adapted(make_model, "llama").float(), torch.arange(26).view(2, 13)
    _, gradients = slopes(model, tokens)
    with fused(model), torch.autocast("cpu", torch.bfloat16):
        _, mine = slopes(model, tokens)
    a, b = (torch.cat([one[name].flatten() for name in gradients]) for one in (gradients, mine))
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.99
    assert all(slope.dtype == torch.float32 for slope in mine.values())


@pytest.mark.parametrize(("heads", "kv"), [(4, 4), (6, 2), (3, 1)])
def test_causal_attention_is_torch_s(heads: int, kv: int) -> None:
    generator = torch.Generator().manual_seed(heads)
    q, k, v = (
        torch.randn(2, n, 11, 8, generator=generator, dtype=torch.float64, requires_grad=True) for n in (heads, kv, kv)
    )
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3, enable_gqa=True)
    slope = torch.randn(want.shape, generator=generator, dtype=torch.float64)
    found = causal(q, k, v, 0.3)
    torch.testing.assert_close(found, want)
    for a, b in zip(
        torch.autograd.grad(found, (q, k, v), slope), torch.autograd.grad(want, (q, k, v), slope), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_a_pass_over_clean_tokens_is_the_backbone_s(make_model: Make, family: str) -> None:
    model, tokens = make_model(family), torch.arange(30).view(2, 15)
    places = torch.arange(15).expand(2, -1)
    with torch.no_grad():
        want = model.causal(tokens).logits[..., : model.vocab]
        got = model.logits(causal_pass(model, model.embed(tokens), places))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
