"""Tokens a second: the core alone against its base decoded token by token, the ensemble against SSD-LM's procedure.

The core with drafts writes the text that it writes one token a pass; whether that is as good as its base's is the
quality suite's. SSD-LM's procedure recomputes the context at each of 1,000 steps, so one step of it is timed, and its
time multiplied. Knows engines, contexts and times; nothing about files or reports.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ssd_client.options import GenerateOptions, decode_params, with_drafts
from ssd_diffusion import lookahead
from ssd_diffusion.engine import Engine
from ssd_diffusion.ensemble import Ensemble, Weights
from ssd_diffusion.keys import noise_key
from ssd_diffusion.lookahead import Drafter
from ssd_diffusion.members import EngineMember
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.sampler import DecodeParams
from ssd_kernels.types import I32
from torch import Tensor

from ssd_bench.pair import Pair

PROMPTS = (
    "What is a lighthouse for?",
    "Explain how bread is made.",
    "Write three sentences about the sea in winter.",
    "Why do leaves change colour in autumn?",
    "Describe a small workshop where boats are built.",
    "What should a new colleague know on the first day?",
    "Write a short letter that thanks a supplier.",
    "How does a bicycle stay upright?",
    "Tell me about the city of Lisbon.",
    "What makes a good meeting?",
    "Give me advice for growing tomatoes.",
    "Summarise what a library does.",
)
SSDLM_STEPS, SSDLM_BLOCK, SIMPLEX_K = 1000, 25, 5.0


@dataclass(frozen=True, slots=True)
class Timed:
    """One text: seconds a token of what is to be beaten and of ours, and our tokens a pass."""

    plain: float
    ours: float
    tokens_a_pass: float

    @property
    def ratio(self) -> float:
        """How many times as many tokens a second."""
        return self.plain / self.ours


def core_alone(
    engine: Engine, drafter: Drafter | None, base: Any, context: I32, *, tokens: int, seed: int, ours_first: bool
) -> Timed:
    """A continuation by both, of exactly so many tokens, at the client's temperature and nucleus.

    Args:
        engine: the core's.
        drafter: the core's.
        base: the decoder that it came from, in transformers, with its KV cache.
        context: the prompt's ids.
        tokens: of the text.
        seed: of the draws.
        ours_first: which is timed first.
    """
    options = with_drafts(GenerateOptions(prompt="-", max_tokens=tokens), taught=drafter is not None, decoders=None)
    params = decode_params(options, engine.spec, ())
    found: dict[bool, float] = {}
    passes = 1
    for ours in (True, False) if ours_first else (False, True):
        started = time.perf_counter()
        if ours:
            passes = _write(engine, drafter, context, params, seed)
        else:
            _generate(base, context, params, seed)
        found[ours] = (time.perf_counter() - started) / tokens
    return Timed(found[False], found[True], tokens / passes)


def _write(engine: Engine, drafter: Drafter | None, context: I32, params: DecodeParams, seed: int) -> int:
    member = EngineMember(engine, 0, context, name="core")
    with Ensemble(core=member, private=None, public=None, weights=Weights(lam=0.0)) as ensemble:
        events = lookahead.decode(
            ensemble, params, context[-2:], drafter, noise_key=noise_key(seed), draw_key=seed
        )  # fmt: skip
        return sum(1 for _ in events)


def _generate(base: Any, context: I32, params: DecodeParams, seed: int) -> Tensor:
    torch.manual_seed(seed)
    ids = torch.from_numpy(context.astype(np.int64))[None]
    with torch.inference_mode():
        found: Tensor = base.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=params.temperature,
            top_p=params.top_p, top_k=0, max_new_tokens=params.max_tokens, min_new_tokens=params.max_tokens,
            use_cache=True, pad_token_id=0,
        )  # fmt: skip
    return found


def ensemble(pair: Pair, models: Sequence[Ssd2Model], question: str, *, tokens: int, seed: int) -> Timed:
    """An answer by the shipped ensemble, and one step of SSD-LM's procedure by the same members.

    Args:
        pair: core and expert.
        models: the same weights in torch: core, expert, and the expert once more where its contrast has a say.
        question: what is asked.
        tokens: longest answer.
        seed: of noise and draws.
    """
    contexts = pair.contexts(question, answer_room=tokens + SSDLM_BLOCK)
    params = pair.params("diffusion", max_tokens=tokens, projection="sample")
    ids = (contexts.core_ids, contexts.expert_ids)
    started = time.perf_counter()
    with pair.open("ensemble", *ids) as opened:
        events = list(
            lookahead.decode(
                opened, params, contexts.expert_ids[-2:], pair.drafter, noise_key=noise_key(seed), draw_key=seed
            )
        )
    written = sum(len(event.committed) for event in events)
    ours = (time.perf_counter() - started) / written
    started = time.perf_counter()
    for model, context in zip(models, (*ids, ids[0]), strict=False):
        ssdlm_step(model, context)
    plain = (time.perf_counter() - started) * SSDLM_STEPS / SSDLM_BLOCK
    return Timed(plain, ours, written / len(events))


def ssdlm_step(model: Ssd2Model, context: I32) -> Tensor:
    """One step of the textbook procedure: dense noise, softmax, embedding, the whole context read again. [B, V]"""
    with torch.inference_mode():
        x_t = SIMPLEX_K * torch.randn(SSDLM_BLOCK, model.vocab)
        noisy = model.w_diff(torch.softmax(x_t, dim=-1) @ model.table)
        clean = model.embed(torch.from_numpy(context.astype(np.int64))[None])
        inputs = torch.cat([clean, noisy[None]], dim=1)
        size = inputs.shape[1]
        allowed = torch.ones(1, size, size, dtype=torch.bool)
        allowed[:, : len(context)] = torch.ones(size, size, dtype=torch.bool).tril()[: len(context)]
        hidden, _ = model.forward_pass(inputs, torch.arange(size)[None], allowed, keep=False)
        return model.logits(hidden[0, -SSDLM_BLOCK:])
