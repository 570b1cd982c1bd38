"""Sessions on a real node: their passes one session after the other, and all sessions at once.

A visit is what a device sends for one answer by default: windows that look ahead, a draft of which stands at every
pass. Its messages are made beforehand and what comes back is dropped, so that the node is what is measured. Knows
nodes and messages; nothing about reports.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from ssd_client.node import NodeChannel, NodeInfo
from ssd_client.options import GenerateOptions, decode_params, opening, with_drafts
from ssd_client.remote import StreamSession, drafted_record
from ssd_diffusion.lookahead import LookaheadState
from ssd_diffusion.models import folder
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.sampler import DecodeParams
from ssd_diffusion.tokenizer import Tokenizer
from ssd_diffusion.window import StepRecord
from ssd_kernels.types import I32, TokenSets
from ssd_protos import packing
from ssd_protos.ssd.v1 import ssd_pb2

from ssd_bench.served import Served
from ssd_bench.versus import Rounds, by_turns

STEP_S = 120.0
_LAYERS, _WIDTH, _HEADS, _KV_HEADS, _INNER = 8, 256, 4, 2, 688


@dataclass(frozen=True, slots=True)
class Visit:
    """What one session sends: its opening, and a message for every pass; tokens that it commits."""

    opening: ssd_pb2.Open
    steps: tuple[ssd_pb2.Step, ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class Pass:
    """Seconds of one pass: as its session saw it, of these in the queue and in the network."""

    seen: float
    queued: float
    computed: float


def small_core(target: Path, tokenizer: Path, seed: int = 0) -> int:
    """Write a core of random weights: 8 layers of width 256 on a tokenizer's vocabulary; returns its parameters."""
    config = transformers.LlamaConfig(
        vocab_size=Tokenizer.load(tokenizer).vocab, hidden_size=_WIDTH, num_hidden_layers=_LAYERS,
        num_attention_heads=_HEADS, num_key_value_heads=_KV_HEADS, intermediate_size=_INNER,
        max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = transformers.LlamaForCausalLM(config).eval()
    model = Ssd2Model(backbone, config.vocab_size).eval()
    folder.save(model, target, name="small-random", tokenizer=tokenizer, card={"note": "random weights, to be timed"})
    return sum(p.numel() for p in backbone.parameters())


def visits(info: NodeInfo, count: int, *, passes: int, longest: int, seed: int) -> list[Visit]:
    """Sessions with prompts of different lengths, the longest of `longest` tokens."""
    options = with_drafts(GenerateOptions(prompt="-", max_tokens=2 * passes), taught=True, decoders=None)
    params = decode_params(options, info.spec, ())
    made = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        prompt = rng.integers(0, info.spec.vocab, max(1, longest * (number + 1) // count)).tolist()
        opened = opening(options, params, info, prompt, noise_key=number, core_draw_key=0)
        steps = tuple(_steps(params, info.spec.vocab, passes, rng))
        made.append(Visit(opened, steps, 2 * len(steps)))
    return made


def _steps(params: DecodeParams, vocab: int, passes: int, rng: np.random.Generator) -> Iterator[ssd_pb2.Step]:
    state = LookaheadState.begin(noise_key=0, width=params.drafts, depth=params.depth, limit=params.max_tokens)
    committed: I32 = np.zeros(0, np.int32)
    for index in range(passes):
        window = state.window()
        message = ssd_pb2.Step(index=index)
        if index:
            sets, accepted = drafted_record(window, committed)
            message.w_hat = packing.pack_ids(sets.ids, vocab)
            message.w_hat_counts = packing.pack_counts(np.diff(sets.offsets))
            message.accepted = packing.pack_flags(accepted)
            assert window.parents is not None
            message.parents = (window.parents + 1).astype(np.uint8).tobytes()
        yield message
        if state.limit - state.start <= 2:
            return
        stood = state.drafts.tokens[:1]
        taken = np.append(stood, rng.integers(0, vocab)).astype(np.int32)
        # One guess behind the other as deep as drafts may go, the rest beside the first.
        depth = min(window.ahead, state.limit - state.start - len(taken) - 1, params.drafts)
        parents = np.array([*range(-1, depth - 1), *[-1] * (params.drafts - depth)], np.int32) if depth else None
        drafts = rng.choice(vocab, params.drafts if depth else 0, replace=False).astype(np.int32)
        flags = np.arange(len(taken) + len(drafts)) < len(taken)
        record = StepRecord(TokenSets.single(np.concatenate([taken, drafts])), flags, parents)
        state, committed = state.advance(record)


def answer(channel: NodeChannel, visit: Visit) -> list[Pass]:
    """One session from its opening to its end."""
    session, found = StreamSession(channel, visit.opening, STEP_S), []
    for step in visit.steps:
        started = time.perf_counter()
        result = session.ask(step, STEP_S)
        found.append(Pass(time.perf_counter() - started, 1e-6 * result.queue_us, 1e-6 * result.compute_us))
    session.close()
    return found


def at_once(channel: NodeChannel, several: Sequence[Visit]) -> list[Pass]:
    """All sessions together, each on a thread of its own."""
    with ThreadPoolExecutor(len(several)) as pool:
        return [one for passes in pool.map(lambda visit: answer(channel, visit), several) for one in passes]


def one_by_one(channel: NodeChannel, several: Sequence[Visit]) -> list[Pass]:
    """All sessions, one after the other."""
    return [one for visit in several for one in answer(channel, visit)]


@dataclass(frozen=True, slots=True)
class Load:
    """What a node does under a number of sessions.

    Attributes:
        rounds: seconds of all sessions, one after the other and at once.
        alone, together: the passes of the last round.
        resident: bytes of the node's memory at the end.
    """

    rounds: Rounds
    alone: list[Pass]
    together: list[Pass]
    resident: int


def measure(node: Served, channel: NodeChannel, several: Sequence[Visit], rounds: int) -> Load:
    """The same sessions one after the other and at once, by turns."""
    last: dict[str, list[Pass]] = {}
    ratios = by_turns(
        lambda: last.update(alone=one_by_one(channel, several)),
        lambda: last.update(together=at_once(channel, several)),
        rounds,
    )
    return Load(ratios, last["alone"], last["together"], node.resident)


def tokens_a_second(channel: NodeChannel, several: Sequence[Visit], rounds: int) -> list[float]:
    """What these sessions get at once, round by round, after one that only warms up."""
    found = []
    for number in range(rounds + 1):
        started = time.perf_counter()
        at_once(channel, several)
        if number:
            found.append(sum(visit.tokens for visit in several) / (time.perf_counter() - started))
    return found
