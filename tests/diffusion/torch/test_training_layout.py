"""The one-pass layout against the engine block by block, and against attention written out in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ssd_diffusion.engine import ModelSpec
from ssd_diffusion.models.engine import TorchEngine
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.schedule import alpha_bar
from ssd_diffusion.training import attention
from ssd_diffusion.training.data import Batch
from ssd_diffusion.training.loss import token_losses
from ssd_diffusion.training.noise import (
    GRID,
    LevelMix,
    noised_embedding,
    preceding_levels,
    sample_levels,
)
from ssd_diffusion.training.objective import NoisyInput, block_hidden, hidden_states
from ssd_diffusion.training.onepass import layout, position_ids
from ssd_diffusion.window import Window
from ssd_kernels.simplex import renoise_embed
from ssd_kernels.tables import WholeTable
from ssd_kernels.types import TokenSets

Make = Callable[..., Ssd2Model]
B = 4


def some_batch(rows: int = 2, length: int = 21) -> tuple[Batch, torch.Tensor]:
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(rng.integers(0, 256, (rows, length)))
    starts = torch.tensor([[3, 7, 11, 15], [1, 5, 9, -1]])
    levels = rng.choice([0.0, 0.2, 0.5, 1.0], size=(rows, 4, B)).astype(np.float32)
    supervised = torch.ones(tokens.shape, dtype=torch.bool)
    return Batch(tokens, starts, supervised, B), torch.from_numpy(levels)


def test_one_pass_equals_the_engine_block_by_block(make_model: Make, family: str, spec: ModelSpec) -> None:
    model = make_model(family, learned=0.5)
    batch, u = some_batch()
    noised, conditioning = torch.zeros(*u.shape, 16, dtype=torch.float64), model.mean_embedding.expand(*u.shape, 16)
    windows: dict[tuple[int, int], Window] = {}
    table = WholeTable(model.table.detach().float().numpy())
    for r, j in np.argwhere(batch.starts.numpy() >= 1):
        first = int(batch.starts[r, j])
        truth, levels = batch.tokens[r, first : first + B].numpy(), u[r, j].numpy()
        sets = TokenSets.of([[int(t)] if v < 1 else [] for t, v in zip(truth, levels, strict=True)])
        windows[r, j] = Window(0, 2, 0, levels, sets, 1234)
        pick = np.flatnonzero((levels > 0) & (levels < 1))
        if len(pick):
            embedded = renoise_embed(
                TokenSets.of([[int(truth[i])] for i in pick]), alpha_bar(levels[pick]).astype(np.float32), table,
                noise_key=1234, positions=pick.astype(np.int32), step=2, block=0, k=5.0,
            )  # fmt: skip
            noised[r, j, pick] = torch.from_numpy(embedded).double()
    hidden = hidden_states(model, batch, NoisyInput(u, noised, conditioning))
    together = model.logits(block_hidden(batch, hidden)).detach().numpy()
    engine = TorchEngine(model, spec)
    for (r, j), window in windows.items():
        engine.prefill([0], [batch.tokens[r, : int(batch.starts[r, j])].numpy().astype(np.int32)])
        alone = engine.step([0], [window])[0]
        np.testing.assert_allclose(together[r, j], alone, rtol=2e-5, atol=2e-5)


def test_mask_follows_the_rules_key_by_key() -> None:
    batch, u = some_batch()
    n, found = batch.tokens.shape[1], layout(batch.tokens.shape[1], batch.starts, u)
    for r in range(2):
        kinds: list[tuple[int, int, float, int]] = [(-1, 0, 0.0, p) for p in range(n)]  # block, place, u, position
        for j, start in enumerate(batch.starts[r].tolist()):
            kinds += [(j, i, 0.0 if i == 0 else float(u[r, j, i - 1]), max(start - 1, 0) + i) for i in range(B + 1)]
        assert found.position_ids[r].tolist() == [k[3] for k in kinds]
        for q, (qb, _qi, _qu, qp) in enumerate(kinds):
            for k, (kb, _ki, ku, kp) in enumerate(kinds):
                used = qb < 0 or int(batch.starts[r, qb]) >= 1
                if q == k:
                    expected = True
                elif qb < 0:
                    expected = kb < 0 and kp <= qp
                elif not used:
                    expected = False
                elif kb < 0:
                    expected = kp < int(batch.starts[r, qb]) - 1
                else:
                    expected = kb == qb and ku < 1.0
                assert bool(found.allowed[r, q, k]) == expected, (r, q, k)


def norm(x: Any, weight: Any, bias: Any) -> Any:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * weight + bias


def reference_opt(model: Ssd2Model, inputs: Any, positions: Any, allowed: Any) -> Any:
    """An OPT decoder in float64 numpy, one query and head at a time."""
    w = {k: v.detach().numpy() for k, v in model.causal.model.decoder.named_parameters()}  # type: ignore[union-attr]
    x = inputs + w["embed_positions.weight"][positions + 2]
    for layer in range(2):
        p = f"layers.{layer}."

        def linear(y: Any, name: str, p: str = p) -> Any:
            return y @ w[p + name + ".weight"].T + w[p + name + ".bias"]

        y = norm(x, w[p + "self_attn_layer_norm.weight"], w[p + "self_attn_layer_norm.bias"])
        q, k, v = (linear(y, f"self_attn.{n}_proj") for n in "qkv")
        mixed = np.zeros_like(q)
        for i in range(len(x)):
            for h in (slice(0, 8), slice(8, 16)):
                scores = k[allowed[i]][:, h] @ q[i, h] / np.sqrt(8)
                weight = np.exp(scores - scores.max())
                mixed[i, h] = weight / weight.sum() @ v[allowed[i]][:, h]
        x = x + linear(mixed, "self_attn.out_proj")
        y = norm(x, w[p + "final_layer_norm.weight"], w[p + "final_layer_norm.bias"])
        x = x + linear(np.maximum(linear(y, "fc1"), 0), "fc2")
    return norm(x, w["final_layer_norm.weight"], w["final_layer_norm.bias"])


def test_forward_pass_equals_attention_in_numpy(make_model: Make) -> None:
    model = make_model("opt")
    rng = np.random.default_rng(3)
    inputs = rng.normal(size=(9, 16))
    positions = rng.integers(0, 50, 9)
    allowed = (rng.random((9, 9)) < 0.5) | np.eye(9, dtype=bool)
    hidden, kv = model.forward_pass(
        torch.from_numpy(inputs)[None], torch.from_numpy(positions)[None], torch.from_numpy(allowed)[None]
    )
    np.testing.assert_allclose(
        hidden[0].detach().numpy(), reference_opt(model, inputs, positions, allowed), rtol=1e-9, atol=1e-9
    )
    assert kv is not None
    assert kv.shape == (2, 2, 1, 2, 9, 8)


def test_noised_embedding_is_the_equation() -> None:
    generator = torch.Generator().manual_seed(4)
    table = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    tokens, u = torch.tensor([3, 9, 11, 20]), torch.tensor([0.3, 1.0, 0.0, 0.7])
    found = noised_embedding(tokens, u, table, torch.Generator().manual_seed(8))
    z = torch.randn(2, 50, generator=torch.Generator().manual_seed(8)).double().numpy()
    for row, i in enumerate((0, 3)):
        w = np.full(50, -5.0)
        w[tokens[i]] = 5.0
        ab = float(alpha_bar(float(u[i])))
        x = np.sqrt(ab) * w + np.sqrt(1 - ab) * 5.0 * z[row]
        p = np.exp(x - x.max())
        np.testing.assert_allclose(found[i].numpy(), p / p.sum() @ table.numpy(), rtol=1e-4, atol=1e-5)
    assert not found[1].any()
    assert not found[2].any()


def test_levels_look_like_decoding() -> None:
    rng = np.random.default_rng(0)
    u = sample_levels(rng, 4000, 16, LevelMix())
    assert u.shape == (4000, 16)
    assert ((u >= 0) & (u <= 1)).all()
    assert (u > 0).any(axis=1).all()  # something is always left to learn
    assert 0.1 < (u == 1).all(axis=1).mean() < 0.3
    falling = sample_levels(rng, 500, 16, LevelMix(hidden=0, accepted=0, decoding=1, uniform=0))
    for row in falling:
        kept = row[row > 0]
        assert set(np.round(kept, 4)) <= set(np.round(np.asarray(GRID, np.float32), 4))
        assert (np.diff(kept) >= 0).all()  # further right, noisier


def test_what_stands_to_the_right_is_known_where_it_is_taught() -> None:
    known = sample_levels(
        np.random.default_rng(1), 2000, 16, LevelMix(hidden=0, accepted=0, decoding=0, uniform=0, between=1)
    )
    assert set(np.unique(known)) == {0.0, 1.0}
    assert (known[:, 0] == 1).all()
    runs = (known == 0).argmax(axis=1)
    assert set(runs) >= set(range(1, 9))
    assert (known[:, 8:] == 0).mean() > 0.8
    sizes = sample_levels(
        np.random.default_rng(2), 50, 2, LevelMix(hidden=0, accepted=0, decoding=0, uniform=0, between=1)
    )
    assert (sizes[:, 0] == 1).all()


def test_preceding_levels() -> None:
    rng = np.random.default_rng(0)
    u = np.array([0.0, 0.2, 0.25, 0.3, 0.6, 1.0], np.float32)
    np.testing.assert_allclose(preceding_levels(u, GRID, rng, blind=False), [0.0, 0.3, 0.3, 0.4, 1.0, 1.0])
    for _ in range(20):
        blind = preceding_levels(u, GRID, rng, blind=True)
        assert (blind[1:] >= 0.5).all()
        assert blind[0] == 0.0


def test_frozen_head_loss_equals_plain_cross_entropy() -> None:
    torch.manual_seed(0)
    weight = torch.randn(40, 8, dtype=torch.float64)
    targets = torch.randint(0, 40, (600,))
    scale = torch.rand(600)
    grads = []
    for frozen in (True, False):
        hidden = torch.randn(
            600, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True
        )
        head = weight.clone().requires_grad_(not frozen)
        losses = token_losses(hidden, head, None, targets)
        (losses * scale).sum().backward()  # type: ignore[no-untyped-call]
        expected = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="none")
        np.testing.assert_allclose(losses.detach().numpy(), expected.detach().numpy(), rtol=1e-4, atol=1e-5)
        assert hidden.grad is not None
        grads.append(hidden.grad.numpy())
    np.testing.assert_allclose(grads[0], grads[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_attention_without_the_closed_pairs_is_the_layouts(make_model: Make, family: str) -> None:
    """States and gradients equal those under the dense mask, for rows with missing blocks and every kind of level."""
    model = make_model(family).float()
    torch.manual_seed(0)
    starts = torch.tensor([[1, 7, 9, -1], [3, 5, 20, 12]])
    length, block = 30, 5
    u = torch.rand(2, 4, block)
    u[0, 0], u[1, 1, :2] = 1.0, 0.0
    arranged = layout(length, starts, u)
    inputs = torch.randn(2, length + 4 * (block + 1), model.hidden_size, requires_grad=True)
    weights = torch.randn_like(inputs)
    held = model.causal.config._attn_implementation  # type: ignore[union-attr]
    dense, _ = model.forward_pass(inputs, arranged.position_ids, arranged.allowed, keep=False)
    (wanted,) = torch.autograd.grad((dense * weights).sum(), inputs)
    found = attention.one_pass(
        model, inputs, position_ids(length, starts, block), attention.blocks_of(length, starts, u)
    )
    (slope,) = torch.autograd.grad((found * weights).sum(), inputs)
    torch.testing.assert_close(found, dense, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(slope, wanted, rtol=1e-4, atol=1e-4)
    assert model.causal.config._attn_implementation == held  # type: ignore[union-attr]
