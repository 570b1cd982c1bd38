"""What each origin of a batch is trained on: text of others, the model's own, and answers to prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ssd_diffusion.errors import TrainingError
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.training import data, lora
from ssd_diffusion.training.noise import LevelMix
from ssd_diffusion.training.objective import ObjectiveOptions, _nothing_to_the_right, batch_loss, causal_hidden

Make = Callable[..., Ssd2Model]
HIDDEN = LevelMix(hidden=1.0, accepted=0.0, decoding=0.0, uniform=0.0)
STREAM = (np.arange(400, dtype=np.int32) * 7) % 200


def rows(origin: data.Origin = "text") -> data.PackedRows:
    return data.PackedRows(STREAM, length=48, block=6, rows=2, seed=1, offsets=2, origin=origin)


@given(u=st.lists(st.sampled_from([0.0, 0.3, 1.0]), min_size=2, max_size=8))
def test_blind_positions_by_the_definition(u: list[float]) -> None:
    found = _nothing_to_the_right(torch.tensor(u)[None, None])[0, 0].tolist()
    partial = any(0 < x < 1 for x in u)
    assert found == [x == 1 and not partial and all(y == 1 for y in u[i:]) for i, x in enumerate(u)]


def test_own_text_has_no_clean_loss_and_learns_from_the_clean_half_alone(make_model: Make) -> None:
    """Other true tokens change nothing but what is read: the targets of own text are the model's own distribution."""
    model = make_model("llama").float()
    options = ObjectiveOptions(levels=HIDDEN, conditioned=0.0)
    batch = rows("own").batch(0)
    own = batch_loss(model, batch, options, (1, 2))
    assert own.clean_targets == 0
    assert own.noisy_targets == batch.starts.numel() * 6
    assert np.isfinite(own.noisy)
    plain = batch_loss(model, replace(batch, origin="text"), options, (1, 2))
    assert plain.clean_targets > 0
    assert own.noisy != pytest.approx(plain.noisy, abs=1e-3)


def test_nothing_to_learn_from_own_text_once_drafts_are_right(make_model: Make) -> None:
    """The least loss of a taught position is the entropy of its teacher; the first of a block reaches it already."""
    model = make_model("llama").float()
    batch = rows("own").batch(0)
    # One block a row, so that the first position's target is what the anchor says itself.
    batch = replace(batch, starts=batch.starts[:, :1], block=1)
    found = batch_loss(model, batch, ObjectiveOptions(levels=HIDDEN, conditioned=0.0), (1, 2))
    read = causal_hidden(model, batch.tokens).detach()
    hidden = torch.stack([read[r, batch.starts[r, 0] - 1] for r in range(2)])
    p = torch.softmax(model.logits(hidden), dim=-1)
    entropy = -(p * p.log()).sum(-1).mean()
    assert found.noisy == pytest.approx(float(entropy.detach()), abs=2e-3)


def test_kept_pulls_text_back_to_the_unadapted_decoder(make_model: Make) -> None:
    """With everything kept, the clean loss is least where the adapter does nothing, and its gradient there is zero."""
    model = make_model("llama").float()
    lora.attach(model, lora.LoraOptions(rank=4, alpha=8))
    options = ObjectiveOptions(levels=HIDDEN, conditioned=0.0, clean_weight=1.0, clean_share=1.0, kept=1.0)

    def slope(weight: float) -> tuple[float, float]:
        model.zero_grad(set_to_none=True)
        found = batch_loss(model, rows().batch(0), replace(options, clean_weight=weight), (1, 2))
        found.loss.backward()  # type: ignore[no-untyped-call]
        total = sum(
            float(p.grad.abs().sum()) for n, p in model.named_parameters() if "lora_B" in n and p.grad is not None
        )
        return found.clean, total

    least, with_clean = slope(1.0)
    _, without = slope(0.0)
    assert with_clean == pytest.approx(without, rel=1e-3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    assert slope(1.0)[0] > least
    assert all(p.requires_grad for n, p in model.named_parameters() if "lora_" in n)


def test_kept_needs_an_adapter_and_leaves_own_text_alone(make_model: Make) -> None:
    model = make_model("llama").float()
    options = ObjectiveOptions(levels=HIDDEN, conditioned=0.0, kept=0.5)
    pairs = [data.Pair(range(3, 20), range(30, 42))]
    answers = data.InstructionRows(pairs, length=64, block=6, rows=1, seed=1, eos=0)
    for batch in (rows().batch(0), answers.batch(0)):
        with pytest.raises(TrainingError, match="no adapter"):
            batch_loss(model, batch, options, (1, 2))
    assert np.isfinite(batch_loss(model, rows("own").batch(0), options, (1, 2)).noisy)


def test_sets_of_answer_blocks_begin_before_the_response() -> None:
    pairs = [data.Pair(range(3, 20), range(30, 42)), data.Pair([5], range(60, 75))]
    made = data.InstructionRows(pairs, length=64, block=6, rows=2, seed=1, eos=0, offsets=3)
    batch = made.batch(0)
    assert batch.origin == "answers"
    starts_of = {
        int(batch.supervised[r].nonzero()[0]): batch.starts[r][batch.starts[r] >= 0].tolist() for r in range(2)
    }
    for first, starts in starts_of.items():
        length = int(batch.supervised[[*starts_of].index(first)].nonzero()[-1]) + 1
        assert starts[: (length - first) // 6] == list(range(first, length - 5, 6))
        assert len(starts) > (length - first) // 6
        assert min(starts) >= 1
        assert min(starts) > first - 6
    again = data.InstructionRows(pairs, length=64, block=6, rows=2, seed=1, eos=0, offsets=3).batch(0)
    assert torch.equal(again.starts, batch.starts)


def test_every_turn_of_a_conversation_is_learned() -> None:
    later = (data.Pair([9, 9], [40, 41]), data.Pair([9], range(50, 61)), data.Pair([9], range(70, 90)))
    pair = data.Pair(range(3, 20), range(30, 42), later)
    batch = data.InstructionRows([pair], length=64, block=6, rows=1, seed=1, eos=0, offsets=2).batch(0)
    ids, wanted = batch.tokens[0].tolist(), batch.supervised[0].tolist()
    # The third of the later turns does not fit; the last one that does is filled up to whole blocks.
    assert ids == [*range(3, 20), *range(30, 42), 0, 9, 9, 40, 41, 0, 9, *range(50, 61), 0]
    assert [i for i, w in enumerate(wanted) if w] == [*range(17, 30), *range(32, 35), *range(36, 48)]
    starts = batch.starts[0].tolist()
    assert {17, 23, 29, 32, 36, 42} <= set(starts)
    assert all(start + 6 <= len(ids) for start in starts)
    for start in starts:  # every block holds something to learn
        assert any(wanted[start : start + 6])


def test_a_prompt_that_is_too_long_loses_its_beginning_and_every_later_turn() -> None:
    pair = data.Pair(range(1, 60), range(60, 70), (data.Pair([9], [8]),))
    batch = data.InstructionRows([pair], length=30, block=6, rows=1, seed=1, eos=0).batch(0)
    assert batch.tokens[0].tolist() == [*range(42, 60), *range(60, 70), 0, 0]
    assert batch.supervised[0].nonzero().flatten().tolist() == list(range(18, 30))
