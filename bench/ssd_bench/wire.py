"""What crosses the wire in a decode, and what a codec costs in accuracy.

The decode runs once with exact logits. Beside it, every codec packs the same logits into the very messages of the
protocol, the device's own code reads and reviews them (asking for a wider answer where it would), and what comes out is
fused and projected with the same draw. So all codecs are held against dense float32 on the same passes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from ssd_client.options import GenerateOptions
from ssd_client.received import WIRE_CODECS, Received
from ssd_diffusion import lookahead
from ssd_diffusion.draft_tree import DraftTree
from ssd_diffusion.ensemble import Weights
from ssd_diffusion.keys import noise_key
from ssd_diffusion.lookahead import choose, worth
from ssd_diffusion.sampler import DecodeParams, StepEvent, denoise, project
from ssd_diffusion.window import StepRecord, Window
from ssd_kernels.codec import CodecSpec, encode
from ssd_kernels.combine import entropy, fuse, log_softmax
from ssd_kernels.types import F32, F64, I32, I64, Purpose, TokenSets
from ssd_protos import packing
from ssd_protos.limits import AHEAD_K
from ssd_protos.ssd.v1 import ssd_pb2

from ssd_bench.pair import Pair

FRAME_BYTES = 5
"""What gRPC puts in front of every message; HTTP/2 and TLS come on top and depend on the connection."""
SYNTHETIC_BLOCK, SYNTHETIC_VOCAB = 32, 50_272
_DTYPES = {"dense-f32": "float32", "dense-f16": "float16", "top-k": "topk"}


@dataclass(slots=True)
class Tally:
    """What one codec did over many passes.

    Attributes:
        up, down: bytes of each pass.
        deflated: bytes down that a general compressor (zlib) would leave.
        carried: rows that the device chooses from, in each pass.
        rows: draws compared.
        same: of them, how many are the exact draw.
        kl: KL(exact || received) of each fused row, nats: what S1 loses on average where the text follows the ensemble.
        s1: change of the reference tokens' nats under the received logits, one number a token.
        asked_again: passes with a wider answer.
    """

    up: list[int] = field(default_factory=list)
    down: list[int] = field(default_factory=list)
    deflated: list[int] = field(default_factory=list)
    carried: list[int] = field(default_factory=list)
    rows: int = 0
    same: int = 0
    kl: list[float] = field(default_factory=list)
    s1: list[float] = field(default_factory=list)
    asked_again: int = 0


@dataclass(frozen=True, slots=True)
class Members:
    """Exact logits of one pass: the core's, and the expert's with and without private context. [B, V]"""

    core: F32
    private: F32 | None
    public: F32 | None


class Channel:
    """One codec between a core and a device.

    Args:
        codec: the codec.
        weights: of the ensemble.
        vocab: V.
        limit: the bound over which the device asks again.
    """

    def __init__(self, codec: CodecSpec, weights: Weights, vocab: int, *, limit: float) -> None:
        self.codec, self.tally = codec, Tally()
        self._weights, self._vocab, self._limit = weights, vocab, limit

    def fused(self, members: Members, *, up_bytes: int, drafts: DraftTree | None = None) -> F32:
        """What the device fuses after this pass crossed the wire; counts the bytes. `drafts`: of a pass with some."""
        received = Received(self.codec, vocab=self._vocab, tail=None, weights=self._weights, limit=self._limit)
        rows = len(members.core)
        self.tally.up.append(up_bytes)
        self.tally.down.append(0)
        self.tally.deflated.append(0)
        self.tally.carried.append(rows)

        def carry(k: int) -> F32:
            shown = members.core[:1] if k and drafts is not None else members.core
            message = answer(shown, self.codec, index=len(self.tally.up), wider=k, drafts=None if k else drafts)
            self.tally.down[-1] += FRAME_BYTES + message.ByteSize()
            self.tally.deflated[-1] += FRAME_BYTES + len(zlib.compress(message.SerializeToString()))
            return received.read(message.result.logits, len(shown), k)

        def wider(k: int) -> F32:
            self.tally.up[-1] += up_bytes + 3
            return carry(k)

        received.ask = wider
        core = received.review(carry(0), members.private, members.public)
        bound = received.bound()
        self.tally.asked_again += bound.asked_again if bound is not None else 0
        return fuse_members(Members(core, members.private, members.public), self._weights)


def fuse_members(members: Members, weights: Weights) -> F32:
    """Fused log-probabilities [B, V]."""
    return fuse(
        members.core, members.private, members.public,
        lam=weights.lam, alpha=weights.alpha, contrast_top_p=weights.contrast_top_p, normalise=weights.normalise,
    )  # fmt: skip


def answer(
    logits: F32, spec: CodecSpec, *, index: int, wider: int = 0, drafts: DraftTree | None = None
) -> ssd_pb2.DenoiseResponse:
    """The node's message for one pass, of a sliding window or with drafts."""
    later = None if drafts is None else worth(log_softmax(logits), drafts, most=spec.k, least=AHEAD_K)
    data = encode(logits, spec, leading=1, wider=wider, later=later)
    packed = ssd_pb2.Logits(codec=WIRE_CODECS[spec.kind], dtype=_DTYPES[spec.kind], shape=logits.shape, data=data)
    return ssd_pb2.DenoiseResponse(
        result=ssd_pb2.StepResult(index=index, logits=packed, queue_us=1000, compute_us=100_000)
    )


def request_bytes(record: StepRecord | None, *, index: int, vocab: int) -> int:
    """Bytes of the device's message that follows a pass (None: the first)."""
    step = ssd_pb2.Step(index=index)
    if record is not None:
        step.w_hat = packing.pack_ids(record.w_hat.ids, vocab)
        step.w_hat_counts = packing.pack_counts(np.diff(record.w_hat.offsets))
        step.accepted = packing.pack_flags(record.accepted)
        if record.parents is not None:
            step.parents = (record.parents + 1).astype(np.uint8).tobytes()
    return FRAME_BYTES + ssd_pb2.DenoiseRequest(step=step).ByteSize()


def codecs(default: str) -> dict[str, CodecSpec]:
    """Those to compare; the first is the reference."""
    return {name: CodecSpec.parse(name) for name in ("dense-f32", "dense-f16", default)}


def channels(weights: Weights, vocab: int, *, default: str | None = None, limit: float | None = None) -> list[Channel]:
    """A channel for each codec, with the client's defaults."""
    client = GenerateOptions(prompt="-")
    limit = client.tv_limit if limit is None else limit
    return [Channel(spec, weights, vocab, limit=limit) for spec in codecs(default or client.codec).values()]


def decode_once(
    pair: Pair, core_ids: I32, expert_ids: I32, chans: Sequence[Channel], *, seed: int, max_tokens: int
) -> int:
    """One answer by the client's defaults, every pass carried over every channel; returns its tokens."""
    params = pair.params("diffusion", max_tokens=max_tokens, projection="sample")
    compare = _compare_drafted if params.drafts else compare_pass
    seen: list[Members] = []
    record: StepRecord | None = None
    tokens = 0

    def review(core: F32, private: F32 | None, public: F32 | None) -> F32:
        seen.append(Members(core, private, public))
        return core

    with pair.open("ensemble", core_ids, expert_ids, review=review) as ensemble:
        if params.drafts:
            events = lookahead.decode(
                ensemble, params, expert_ids[-2:], pair.drafter, noise_key=noise_key(seed), draw_key=seed
            )
        else:
            events = denoise(ensemble, params, noise_key=noise_key(seed), draw_key=seed)
        for event in events:
            up = request_bytes(record, index=event.window.step, vocab=pair.core.spec.vocab)
            compare(seen.pop(), event, params, chans, draw_key=seed, up_bytes=up)
            record, tokens = event.decision.record, tokens + len(event.committed)
    return tokens


def _compare_drafted(
    members: Members, event: StepEvent, params: DecodeParams, chans: Sequence[Channel], *, draw_key: int, up_bytes: int
) -> None:
    """As `compare_pass`, of a pass with drafts: the rows are compared that a token was chosen from."""
    window = event.window
    parents = np.zeros(0, np.int32) if window.parents is None else window.parents
    drafts, rows = DraftTree(window.w_hat.ids, parents), [0]
    for token in event.committed[:-1].tolist():
        draft = drafts.step(rows[-1] - 1, token)
        if draft is None:  # kept by leniency, or cut off by the end of the answer
            break
        rows.append(draft + 1)

    def chosen(fused: F32) -> list[int]:
        return [
            int(choose(fused[row : row + 1], params, draw_key=draw_key, first=window.start + place)[0])
            for place, row in enumerate(rows)
        ]

    exact = chosen(event.fused)
    for channel in chans:
        got = channel.fused(members, up_bytes=up_bytes, drafts=drafts)
        channel.tally.rows += len(rows)
        channel.tally.same += sum(a == b for a, b in zip(exact, chosen(got), strict=True))
        channel.tally.kl += divergence(event.fused[rows], got[rows]).tolist()


def compare_pass(
    members: Members,
    event: StepEvent,
    params: DecodeParams,
    chans: Sequence[Channel],
    *,
    draw_key: int,
    up_bytes: int,
) -> None:
    """Carry one pass over every channel and hold draws and distributions of its open positions against the exact."""
    window = event.window
    rows = np.flatnonzero(~window.accepted).astype(np.int32)
    exact = project(event.fused[rows], params, draw_key=draw_key, window=window, rows=rows, purpose=Purpose.DRAW)
    for channel in chans:
        got = channel.fused(members, up_bytes=up_bytes)[rows]
        drawn = project(got, params, draw_key=draw_key, window=window, rows=rows, purpose=Purpose.DRAW)
        channel.tally.rows += len(rows)
        channel.tally.same += int((drawn.ids == exact.ids).sum())
        channel.tally.kl += divergence(event.fused[rows], got).tolist()


def reference_change(pair: Pair, core_ids: I32, expert_ids: I32, tokens: I32, chans: Sequence[Channel]) -> None:
    """S1 of reference tokens with exact and received logits: adds the change of each token to the tallies."""
    spare = [Channel(c.codec, pair.weights, pair.core.spec.vocab, limit=c._limit) for c in chans]
    seen: list[Members] = []

    def review(core: F32, private: F32 | None, public: F32 | None) -> F32:
        seen.append(Members(core, private, public))
        return core

    with pair.open("ensemble", core_ids, expert_ids, review=review) as ensemble:
        for i, token in enumerate(tokens.tolist()):
            window = Window(i, i, 0, np.ones(1, np.float32), TokenSets.empty(1), 0)
            exact = ensemble.step(window, tokens[i - 1 : i] if i else tokens[:0]).fused[0, token]
            members = seen.pop()
            for channel, own in zip(spare, chans, strict=True):
                own.tally.s1.append(float(exact - channel.fused(members, up_bytes=0)[0, token]))


def divergence(exact: F32, got: F32) -> F64:
    """KL(exact || got) of each row in nats. [B]"""
    p = log_softmax(exact).astype(np.float64)
    q = log_softmax(got).astype(np.float64)
    return np.asarray((np.exp(p) * (p - q)).sum(axis=-1))


def synthetic_pass(rng: np.random.Generator, *, block: int, vocab: int) -> Members:
    """Logits with the look of a language model's: a Zipf unigram with noise, and 40 tokens likelier by the context.

    The core's rows have entropies spread evenly from .1 nats at the left to 7 at the right (where the vocabulary allows
    it). The expert knows the same likely tokens, with noise of 1 nat on them and of .7 on all others.
    """
    unigram = -np.log(np.arange(vocab) + 2.7)[rng.permutation(vocab)]
    core = unigram + 1.5 * rng.normal(size=(block, vocab))
    expert = core + 0.7 * rng.normal(size=(block, vocab))
    for i, target in enumerate(np.linspace(0.1, 7.0, block)):
        likely = rng.choice(vocab, min(40, vocab // 2), replace=False)
        shape = rng.exponential(1.0, len(likely))
        height = _height(core[i], likely, shape, target)
        core[i, likely] += height * shape
        expert[i, likely] = core[i, likely] + rng.normal(size=len(likely))
    return Members(core.astype(np.float32), expert.astype(np.float32), None)


def _height(row: F64, likely: I64, shape: F64, target: float) -> float:
    """How far the likely tokens must rise, in units of `shape`, for the row to have the target entropy (bisection)."""
    low, high = 0.0, 60.0
    for _ in range(40):
        middle = (low + high) / 2
        raised = row.copy()
        raised[likely] += middle * shape
        if float(entropy(log_softmax(raised[None].astype(np.float32)))[0]) > target:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def synthetic(
    chans: Sequence[Channel],
    *,
    weights: Weights,
    block: int,
    vocab: int,
    passes: int,
    seed: int,
    advance: Callable[[], None],
) -> float:
    """Carry synthetic passes over every channel; returns the mean entropy of the fused rows in nats."""
    rng = np.random.default_rng(seed)
    options = GenerateOptions(prompt="-")
    params = DecodeParams(block=block, temperature=options.temperature, top_p=options.top_p)
    nats = []
    for index in range(passes):
        members = synthetic_pass(rng, block=block, vocab=vocab)
        window = Window(index, index, 0, np.full(block, 0.5, np.float32), TokenSets.empty(block), 0)
        exact = fuse_members(members, weights)
        rows = np.arange(block, dtype=np.int32)
        sets = project(exact, params, draw_key=seed, window=window, rows=rows, purpose=Purpose.DRAW)
        up = request_bytes(StepRecord(sets, np.zeros(block, np.bool_)), index=index, vocab=vocab)
        for channel in chans:
            got = channel.fused(members, up_bytes=up)
            drawn = project(got, params, draw_key=seed, window=window, rows=rows, purpose=Purpose.DRAW)
            channel.tally.rows += block
            channel.tally.same += int((drawn.ids == sets.ids).sum())
            channel.tally.kl += divergence(exact, got).tolist()
        nats.append(float(entropy(exact).mean()))
        advance()
    return float(np.mean(nats))
