"""Reads and checks what callers send: messages in, plain values out, every rule of the wire held here.

Whatever breaks a rule raises `BadRequest` or `Mismatch` before anything is computed or kept. Knows nothing about
sessions that exist, engines or gRPC calls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
from ssd_diffusion.engine import ModelSpec
from ssd_diffusion.errors import DiffusionError
from ssd_diffusion.sampler import DecodeParams, ProjectionKind
from ssd_diffusion.window import StepRecord, check_grid
from ssd_kernels.codec import DEFAULT_K, CodecKindName, CodecSpec
from ssd_kernels.errors import KernelError
from ssd_kernels.types import I32, TokenSets
from ssd_protos.limits import MAX_DEPTH, MAX_DRAFTS, MAX_GRID, PROTOCOL, Limits
from ssd_protos.packing import PackingError, id_bytes, unpack_flags, unpack_ids, unpack_sets
from ssd_protos.ssd.v1 import ssd_pb2

from ssd_cloud.errors import BadRequest, Mismatch

_T = TypeVar("_T")

DecoderKind = Literal["window", "ssdlm", "ar", "lookahead"]

_DECODERS: dict[int, DecoderKind] = {
    ssd_pb2.DECODER_WINDOW: "window",
    ssd_pb2.DECODER_SSDLM: "ssdlm",
    ssd_pb2.DECODER_AUTOREGRESSIVE: "ar",
    ssd_pb2.DECODER_LOOKAHEAD: "lookahead",
}
_CODECS: dict[int, CodecKindName] = {
    ssd_pb2.CODEC_KIND_DENSE_F32: "dense-f32",
    ssd_pb2.CODEC_KIND_DENSE_F16: "dense-f16",
    ssd_pb2.CODEC_KIND_TOP_K: "top-k",
}
_PROJECTIONS: dict[int, ProjectionKind] = {
    ssd_pb2.PROJECTION_SAMPLE: "sample",
    ssd_pb2.PROJECTION_GREEDY: "greedy",
    ssd_pb2.PROJECTION_MULTI_HOT: "multi-hot",
}


@dataclass(frozen=True, slots=True)
class StepInput:
    """One pass as the caller sent it; sizes are checked against the window when it is taken."""

    index: int
    w_hat: bytes
    counts: bytes
    accepted: bytes
    k: int
    skip: bool
    parents: bytes = b""

    def same_decision(self, other: StepInput) -> bool:
        """True when both say the same about the pass before."""
        return replace(self, k=0, skip=False) == replace(other, k=0, skip=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenInput:
    """A session as it is to be.

    Attributes:
        prompt: public prompt ids, at least one.
        noise_key: key of the shared noise.
        decoder: how the answer is written.
        one_way: the node runs its own chain.
        params: window settings; projection settings hold for one-way only.
        core_draw_key: key of the node's own draws (one-way).
        codec: how logits are written.
        history: passes already taken.
        exact_only: looking ahead, without rows ahead.
    """

    prompt: I32
    noise_key: int
    decoder: DecoderKind
    one_way: bool
    params: DecodeParams
    core_draw_key: int
    codec: CodecSpec
    history: tuple[StepInput, ...]
    exact_only: bool = False


def check_protocol(protocol: str) -> None:
    """Refuse another wire version.

    Raises:
        Mismatch: the caller's version is not this node's.
    """
    if protocol != PROTOCOL:
        shown = protocol[:20] or "none"
        raise Mismatch(f"the node speaks wire version {PROTOCOL} and the caller {shown}; update the older of the two")


def read_open(message: ssd_pb2.Open, spec: ModelSpec, limits: Limits) -> OpenInput:
    """Check an Open in full.

    Raises:
        Mismatch: another wire version, model or tokenizer.
        BadRequest: any other rule broken.
    """
    check_protocol(message.protocol)
    _check_model(message, spec)
    decoder = _known(_DECODERS, message.decoder, "decoder")
    if spec.family == "ssdlm" and decoder != "ssdlm":
        raise BadRequest(f"a model of the {spec.family} family does not offer the {decoder} decoder; see Describe")
    if message.mode not in (ssd_pb2.MODE_OPEN, ssd_pb2.MODE_ONE_WAY):
        raise BadRequest(f"unknown mode {message.mode}; use open or one-way")
    one_way = message.mode == ssd_pb2.MODE_ONE_WAY
    if one_way and decoder == "lookahead":
        raise BadRequest("looking ahead needs the open mode: drafts come from both members; use the window decoder")
    if message.params.exact_only and decoder != "lookahead":
        raise BadRequest("exact_only is for a session that looks ahead")
    params = _params(message.params, spec, decoder, one_way)
    prompt = _ids(message.prompt_ids, spec)
    if len(prompt) < 1:
        raise BadRequest("the prompt is empty; send at least one token")
    if len(prompt) + params.max_tokens > spec.max_context:
        raise BadRequest(
            f"a prompt of {len(prompt)} tokens and an answer of {params.max_tokens} do not fit the model's context of "
            f"{spec.max_context}; shorten one of them"
        )
    if len(message.history) > limits.max_passes:
        raise BadRequest(f"a history of {len(message.history)} passes is over the bound of {limits.max_passes}")
    return OpenInput(
        prompt=prompt, noise_key=message.noise_key, decoder=decoder, one_way=one_way, params=params,
        core_draw_key=message.params.core_draw_key, codec=_codec(message.codec, spec),
        history=tuple(read_step(step, spec) for step in message.history), exact_only=message.params.exact_only,
    )  # fmt: skip


def read_step(message: ssd_pb2.Step, spec: ModelSpec) -> StepInput:
    """Check what can be checked of a Step without its window.

    Raises:
        BadRequest: a top-k size over V.
    """
    if message.k > spec.vocab:
        raise BadRequest(f"{message.k} entries a row are more than the vocabulary of {spec.vocab}")
    return StepInput(
        index=message.index, w_hat=message.w_hat, counts=message.w_hat_counts, accepted=message.accepted,
        k=message.k, skip=message.skip, parents=message.parents,
    )  # fmt: skip


def read_record(
    step: StepInput, positions: int, *, decoder: DecoderKind, multi_hot: bool, vocab: int, limits: Limits
) -> StepRecord:
    """The decision about the pass before, for a window of `positions`.

    Looking ahead, a step says by its ids how many positions it speaks of; the state checks that.

    Raises:
        BadRequest: sizes, ids or flags that do not fit the window.
    """
    if step.counts and not multi_hot:
        raise BadRequest("only a multi-hot session may send several ids for a position")
    if decoder == "lookahead":
        positions = len(step.w_hat) // id_bytes(vocab)
    elif step.parents:
        raise BadRequest("only a session that looks ahead has drafts, and parents of them")
    try:
        ids, offsets = unpack_sets(
            step.w_hat, step.counts, positions=positions, vocab=vocab, max_set_ids=limits.max_set_ids
        )
        if decoder == "ar" and not step.accepted:
            accepted = np.ones(1, np.bool_)
        else:
            accepted = unpack_flags(step.accepted, positions)
    except PackingError as error:
        raise BadRequest(f"pass {step.index}: {error}") from error
    parents = np.frombuffer(step.parents, np.uint8).astype(np.int32) - 1 if decoder == "lookahead" else None
    return StepRecord(TokenSets(ids=ids, offsets=offsets), accepted, parents)


def _check_model(message: ssd_pb2.Open, spec: ModelSpec) -> None:
    if message.tokenizer_fingerprint != spec.tokenizer_fingerprint:
        raise Mismatch(
            f"the node's tokenizer is {spec.tokenizer_fingerprint} and the caller's "
            f"{_printable(message.tokenizer_fingerprint)}; use an expert whose base matches this node"
        )
    if message.model_id != spec.model_id:
        raise Mismatch(
            f"the node serves {spec.model_id} and the caller expects {_printable(message.model_id)}; "
            "describe the node again and start a new answer"
        )


def _params(message: ssd_pb2.DecodeParams, spec: ModelSpec, decoder: DecoderKind, one_way: bool) -> DecodeParams:
    projection = _known(_PROJECTIONS, message.projection, "projection")
    for name in ("temperature", "top_p", "entropy_budget"):
        if not math.isfinite(getattr(message, name)) or getattr(message, name) < 0:
            raise BadRequest(f"{name} must be a finite number, 0 or more")
    if not 1 <= message.max_tokens <= spec.max_context:
        raise BadRequest(f"max_tokens must be 1 to {spec.max_context}, not {message.max_tokens}")
    block, grid = message.block, tuple(message.grid)
    if decoder == "ar":
        block, grid = 1, (1.0,)
    drafts, depth = 0, 1
    if decoder == "lookahead":
        drafts, depth, block, grid = block, message.depth, 1, (1.0,)
        _check_drafts(drafts, depth, spec)
    if not 1 <= block <= spec.max_block:
        raise BadRequest(f"the block must be 1 to {spec.max_block} positions, not {block}")
    if not 1 <= len(grid) <= MAX_GRID or not all(math.isfinite(u) for u in grid):
        raise BadRequest(f"the step grid must hold 1 to {MAX_GRID} finite noise levels")
    try:
        check_grid(grid, block, message.max_tokens)
        params = DecodeParams(
            block=block,
            grid=grid,
            max_tokens=message.max_tokens,
            projection=projection,
            eos_ids=spec.eos_ids,
            drafts=drafts,
            depth=depth,
        )
        if one_way:  # in open mode the device decides, and need not say how
            params = replace(
                params, temperature=message.temperature, top_p=message.top_p, entropy_budget=message.entropy_budget
            )
    except DiffusionError as error:
        raise BadRequest(str(error)) from error
    return params


def _check_drafts(drafts: int, depth: int, spec: ModelSpec) -> None:
    most = min(MAX_DRAFTS, spec.max_block - 1)
    if not 1 <= drafts <= most:
        raise BadRequest(f"looking ahead takes 1 to {most} drafts a pass, not {drafts}")
    if not 1 <= depth <= min(drafts, MAX_DEPTH):
        raise BadRequest(f"looking ahead with {drafts} drafts goes 1 to {min(drafts, MAX_DEPTH)} deep, not {depth}")


def _codec(message: ssd_pb2.Codec, spec: ModelSpec) -> CodecSpec:
    kind = _known(_CODECS, message.kind, "codec")
    if message.k > spec.vocab:
        raise BadRequest(f"{message.k} entries a row are more than the vocabulary of {spec.vocab}")
    try:
        return CodecSpec(kind=kind, k=message.k or DEFAULT_K, residual=message.residual)
    except KernelError as error:
        raise BadRequest(str(error)) from error


def _ids(data: bytes, spec: ModelSpec) -> I32:
    try:
        return unpack_ids(data, spec.vocab)
    except PackingError as error:
        raise BadRequest(f"the prompt: {error}") from error


def _known(table: dict[int, _T], value: int, what: str) -> _T:
    if value not in table:
        raise BadRequest(f"unknown {what} {value}; see Describe for what this node offers")
    return table[value]


def _printable(text: str) -> str:
    """A caller's own word, cut and cleaned so that it can stand in a message."""
    shown = "".join(c if c.isascii() and c.isprintable() else "?" for c in text[:100])
    return shown or "none"
