"""Rows exchanged and trained on tiny decoders; and the loss per byte against sums written out."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ssd_diffusion.errors import TrainingError
from ssd_diffusion.models import folder
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.models.tiny import write_tiny
from ssd_diffusion.tokenizer import Tokenizer
from ssd_diffusion.training import data, loop, lora, per_byte
from ssd_diffusion.training.new_rows import exchange_rows, open_rows

ORIGINS = [(5,), (7, 9), (), (200, 200, 3), *((i,) for i in range(10, 250))]
SPECIAL = {"eos": 1, "bos": 0}


def tables(model: Ssd2Model) -> tuple[torch.Tensor, torch.Tensor]:
    causal = model.causal
    return causal.get_input_embeddings().weight, causal.get_output_embeddings().weight


def test_rows_are_means_of_their_origins_and_nothing_else_changes(
    make_model: Callable[..., Ssd2Model], family: str
) -> None:
    model = make_model(family, learned=0.3)
    before, held = model.table.detach().clone(), {k: v.clone() for k, v in model.state_dict().items()}
    exchange_rows(model, ORIGINS, SPECIAL)
    assert model.vocab == len(ORIGINS) == len(tables(model)[0])
    expected = [before[list(ids)].mean(0) if ids else before.mean(0) for ids in ORIGINS]
    assert torch.allclose(model.table, torch.stack(expected).to(before.dtype), atol=1e-6)
    assert torch.equal(model.table[4], before[10].float().to(before.dtype))
    assert tables(model)[0] is tables(model)[1]
    assert torch.allclose(model.mean_embedding, model.table.mean(0))
    now = model.state_dict()
    for name, value in held.items():
        if "embed_tokens" not in name and "lm_head" not in name and name != "mean_embedding":
            assert torch.equal(now[name], value), name
    config = model.causal.config
    assert (config.vocab_size, config.bos_token_id, config.eos_token_id, config.pad_token_id) == (244, 0, 1, None)


def test_the_same_order_gives_the_same_model(make_model: Callable[..., Ssd2Model], family: str) -> None:
    model = make_model(family).float()
    ids = torch.arange(40)[None]
    layout = (torch.arange(40)[None], torch.ones(40, 40, dtype=torch.bool).tril()[None])
    before = model.logits(model.forward_pass(model.embed(ids), *layout, keep=False)[0])
    exchange_rows(model, [(i,) for i in range(256)], SPECIAL)
    after = model.logits(model.forward_pass(model.embed(ids), *layout, keep=False)[0])
    assert torch.equal(before, after)


def test_an_untied_head_stays_untied(make_model: Callable[..., Ssd2Model]) -> None:
    model = make_model("llama")
    causal = model.causal
    causal.config.tie_word_embeddings = False
    causal.lm_head.weight = torch.nn.Parameter(torch.randn_like(causal.lm_head.weight))
    head = causal.lm_head.weight.detach().clone()
    exchange_rows(model, ORIGINS, SPECIAL)
    table, out = tables(model)
    assert table is not out
    assert torch.allclose(out[1], head[[7, 9]].mean(0), atol=1e-6)
    assert not torch.equal(table[1], out[1])


def test_only_open_rows_and_the_adapter_move(make_model: Callable[..., Ssd2Model], family: str) -> None:
    model = make_model(family).float()
    before = model.table.detach().clone()
    lora.attach(model, lora.LoraOptions(rank=2, alpha=4))
    open_rows(model, [3, 30])
    rows = data.PackedRows(torch.arange(400).remainder(250).numpy().astype("int32"), length=48, block=8, rows=1, seed=0)
    loop.train(model, rows, loop.TrainOptions(steps=3, learning_rate=1e-2))
    moved = (model.table.detach() != before).any(dim=1).nonzero().flatten().tolist()
    assert moved == [3, 30]
    assert model.w_time.weight.detach().any()


def test_per_byte_is_the_sum_over_all_tokens_by_all_bytes(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny")
    model, tokenizer = folder.load(path)[0], Tokenizer.load(path)
    texts = ["a cat", "Zoë", "x"]
    seen: list[float] = []
    found = per_byte.score(model, tokenizer, texts, start=2, on_fraction=seen.append)
    total = 0.0
    for text in texts:
        ids = [2, *tokenizer.encode(text).tolist()]
        with torch.no_grad():
            logp = torch.log_softmax(model.causal(torch.tensor([ids])).logits[0].double(), dim=-1)
        total -= sum(float(logp[i, token]) for i, token in enumerate(ids[1:]))
    assert found.nats_per_byte == pytest.approx(total / 10, rel=1e-5)
    assert (found.texts, found.bytes, found.tokens) == (3, 10, 10)
    assert found.error > 0
    assert math.isclose(per_byte.score(model, tokenizer, texts[:1], start=2).error, 0.0, abs_tol=1e-9)
    assert seen == [1 / 3, 2 / 3, 1.0]


def test_openings_are_cut_between_characters() -> None:
    assert per_byte.openings(["", " \n", "ééé", "abcdef", "z"], most=2, most_bytes=5) == ["éé", "abcde"]
    with pytest.raises(TrainingError, match="no text to score"):
        per_byte.openings(["", "\n"], most=3)
