"""What a user may choose for one answer, checked, and the wire's words for it.

Public settings (all but lam, alpha, expert, private and passages) may go to a node; the others never leave the device.
Knows nothing about members or connections.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from ssd_diffusion.engine import ModelSpec
from ssd_diffusion.sampler import DecodeParams, ProjectionKind
from ssd_diffusion.schedule import thin_grid, uniform_grid
from ssd_kernels.codec import CodecSpec
from ssd_kernels.errors import InvalidInput
from ssd_protos.limits import MAX_DRAFTS, PROTOCOL
from ssd_protos.packing import pack_ids
from ssd_protos.ssd.v1 import ssd_pb2

from ssd_client.consent import Privacy
from ssd_client.errors import NodeMismatch, UsageError
from ssd_client.node import NodeInfo
from ssd_client.received import WIRE_CODECS
from ssd_client.remote import Wire

DecoderName = Literal["diffusion", "ar", "ssdlm"]

SSDLM_STEPS = 50
USUAL_DRAFTS = 6  # eight save hardly a pass more and cost a quarter more bytes
_FEW = 8  # up to here a fourth position ahead costs more rows than it saves passes
WINDOW_STEPS = 1  # chosen by measurement, docs/quality.md: lower noise levels cost the packaged core likelihood
_DECODERS: dict[DecoderName, ssd_pb2.Decoder.ValueType] = {
    "diffusion": ssd_pb2.DECODER_WINDOW,
    "ar": ssd_pb2.DECODER_AUTOREGRESSIVE,
    "ssdlm": ssd_pb2.DECODER_SSDLM,
}
_PROJECTIONS: dict[ProjectionKind, ssd_pb2.Projection.ValueType] = {
    "sample": ssd_pb2.PROJECTION_SAMPLE,
    "greedy": ssd_pb2.PROJECTION_GREEDY,
    "multi-hot": ssd_pb2.PROJECTION_MULTI_HOT,
}
_MAX_TOKENS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateOptions:
    """The choices for one answer; None means: as the expert's card, the core or the device has it.

    Attributes:
        prompt: the user's words, with [[...]] round private ones.
        expert: name of the expert; None where there is only one.
        node: "HOST[:PORT]", or None: without a core.
        offline: do not use a node even when one is set.
        token: the node's access token.
        seed: same seed, same text (on one device).
        steps: noise levels a position passes at most; None: 1 for diffusion, 50 for ssdlm.
        max_tokens: longest answer.
        privacy: "open" or "one-way".
        lam: the expert's share in [0, 1].
        alpha: strength of the contrast that private context makes, >= 0.
        codec: how the core's logits are packed, as `CodecSpec.parse` reads it.
        decoder: "diffusion", "ar" (one token at a time) or "ssdlm" (fixed blocks).
        projection: how the estimate is chosen.
        block: open positions.
        temperature: of the draws; 0 takes the most probable.
        top_p: nucleus mass of the draws.
        entropy_budget: nats that one step may accept beyond its first position.
        drafts: look ahead with so many drafts a step; 0 does not. The text stays the same, in fewer steps. None: 6
            where expert and node can, and nothing else was asked for that forbids it (`with_drafts`).
        core_drafts: the core drafts too: fewer steps where it has much to say, more rows to compute and to send.
        leniency: 0 keeps a draft only where it is the token drawn; up to 1 also others that are nearly as probable.
        core_every: ask the core at every m-th step only, and use its last logits between (open only).
        private: texts for the expert alone; a leading @ names a file.
        passages: most passages of the documents for the expert.
        deadline_s: longest time a node may be silent or away before the expert goes on alone.
        wire: "stream" or "unary".
        ca: PEM file that the node's certificate is checked against.
        insecure: allow plaintext to another machine.
        tv_limit: largest total-variation bound of a sparse codec before a wider answer is asked for (open only).
        yes: agreed to send what `--dry-run` shows.
    """

    prompt: str
    expert: str | None = None
    node: str | None = None
    offline: bool = False
    token: str | None = None
    seed: int | None = None
    steps: int | None = None
    max_tokens: int = 128
    privacy: Privacy = "open"
    lam: float | None = None
    alpha: float | None = None
    codec: str = "top-k"
    decoder: DecoderName = "diffusion"
    projection: ProjectionKind = "sample"
    block: int = 8
    temperature: float = 0.7
    top_p: float = 0.9
    entropy_budget: float = 0.0
    drafts: int | None = None
    core_drafts: bool = False
    leniency: float = 0.0
    core_every: int = 1
    private: tuple[str, ...] = ()
    passages: int = 4
    deadline_s: float = 30.0
    wire: Wire = "stream"
    ca: Path | None = None
    insecure: bool = False
    tv_limit: float = 0.5
    yes: bool = False

    def __post_init__(self) -> None:
        _one_of("--privacy", self.privacy, get_args(Privacy))
        _one_of("--decoder", self.decoder, get_args(DecoderName))
        _one_of("--projection", self.projection, get_args(ProjectionKind))
        _one_of("--wire", self.wire, get_args(Wire))
        _between("--max-tokens", self.max_tokens, 1, _MAX_TOKENS)
        _between("--steps", self.steps, 1, 1024)
        _between("--block", self.block, 1, 1024)
        _between("--lam", self.lam, 0.0, 1.0)
        _between("--alpha", self.alpha, 0.0, 100.0)
        _between("--temperature", self.temperature, 0.0, 100.0)
        _between("--top-p", self.top_p, 1e-6, 1.0)
        _between("--entropy-budget", self.entropy_budget, 0.0, 1e6)
        _between("--drafts", self.drafts, 0, MAX_DRAFTS)
        _between("--leniency", self.leniency, 0.0, 1.0)
        _between("--core-every", self.core_every, 1, 1024)
        _between("--passages", self.passages, 0, 100)
        _between("--deadline", self.deadline_s, 0.1, 3600.0)
        _between("--tv-limit", self.tv_limit, 0.0, 1.0)
        _between("--seed", self.seed, -(2**63), 2**63 - 1)
        if self.privacy == "one-way" and self.wire == "unary":
            raise UsageError("one-way needs the stream; leave --wire unary out")
        if self.core_every > 1 and (self.privacy == "one-way" or self.decoder == "ar"):
            raise UsageError("--core-every works with --privacy open and windows only; leave it out")
        self._check_drafts()
        self.codec_spec()

    def _check_drafts(self) -> None:
        if self.leniency and self.drafts == 0:
            raise UsageError("--leniency judges drafts; leave --drafts 0 out")
        if self.core_drafts and self.drafts == 0:
            raise UsageError("--core-drafts makes drafts; leave --drafts 0 out")
        wrong = self.against_drafts()
        if self.drafts and wrong is not None:
            raise UsageError(f"--drafts has a way of its own to decode, in open mode; leave {wrong} out")

    def against_drafts(self) -> str | None:
        """The flag with which looking ahead does not go together, if there is one."""
        others = {
            "--decoder": self.decoder != "diffusion", "--privacy one-way": self.privacy != "open",
            "--projection multi-hot": self.projection == "multi-hot", "--steps": (self.steps or 1) != 1,
            "--entropy-budget": self.entropy_budget != 0.0, "--core-every": self.core_every != 1,
        }  # fmt: skip
        return next((flag for flag, set_ in others.items() if set_), None)

    def codec_spec(self) -> CodecSpec:
        """The codec.

        Raises:
            UsageError: no such codec.
        """
        try:
            return CodecSpec.parse(self.codec)
        except InvalidInput as error:
            raise UsageError(f"--codec: {error}") from error


def with_drafts(options: GenerateOptions, *, taught: bool, decoders: Collection[int] | None) -> GenerateOptions:
    """The same options with the number of drafts decided.

    Args:
        options: for one answer.
        taught: whether the expert was taught to draft.
        decoders: that the node offers; None without a node.

    Raises:
        UsageError: leniency, and no drafts that it could judge.
    """
    if options.drafts is not None:
        return options
    offered = decoders is None or ssd_pb2.DECODER_LOOKAHEAD in decoders
    usual = USUAL_DRAFTS if taught and offered and options.against_drafts() is None else 0
    if options.leniency and not usual:
        raise UsageError(
            "nothing is drafted with these settings, expert and node; leave --leniency out, or give --drafts"
        )
    return replace(options, drafts=usual)


def decode_params(options: GenerateOptions, spec: ModelSpec, eos_ids: tuple[int, ...]) -> DecodeParams:
    """How to decode on the grid of `spec`: the core's where there is one, else the expert's. Public settings only."""
    block, drafts = min(options.block, spec.max_block), min(options.drafts or 0, spec.max_block - 1)
    if options.decoder == "ssdlm":
        grid = uniform_grid(options.steps or SSDLM_STEPS)
    else:
        grid = thin_grid(spec.grid, options.steps or WINDOW_STEPS)
    if options.decoder == "ar" or options.drafts:
        block, grid = 1, (1.0,)
    return DecodeParams(
        block=block, grid=grid, max_tokens=options.max_tokens, projection=options.projection,
        temperature=options.temperature, top_p=options.top_p, entropy_budget=options.entropy_budget, eos_ids=eos_ids,
        drafts=drafts, depth=draft_depth(drafts), leniency=options.leniency,
    )  # fmt: skip


def draft_depth(drafts: int) -> int:
    """How many drafts can follow one another: what looking further ahead brings does not pay for its rows."""
    return max(1, min(drafts, 3 if drafts <= _FEW else 4))


def opening(
    options: GenerateOptions,
    params: DecodeParams,
    info: NodeInfo,
    prompt_ids: list[int],
    *,
    noise_key: int,
    core_draw_key: int,
) -> ssd_pb2.Open:
    """The first message: nothing in it depends on documents, expert, lam or alpha.

    Raises:
        NodeMismatch: the node does not offer the decoder or codec.
    """
    decoder, codec = _DECODERS[options.decoder], options.codec_spec()
    depth = params.depth if params.drafts else 0
    if params.drafts:
        decoder = ssd_pb2.DECODER_LOOKAHEAD
        if decoder not in info.decoders:
            raise NodeMismatch("the node does not look ahead; leave --drafts out, or use a newer node")
    if decoder not in info.decoders:
        offered = ", ".join(name for name, value in _DECODERS.items() if value in info.decoders)
        raise NodeMismatch(f"the node does not offer --decoder {options.decoder}; it offers: {offered or 'none'}")
    if WIRE_CODECS[codec.kind] not in info.codecs:
        offered = ", ".join(name for name, value in WIRE_CODECS.items() if value in info.codecs)
        raise NodeMismatch(f"the node does not offer --codec {codec.kind}; it offers: {offered or 'none'}")
    wire_params = ssd_pb2.DecodeParams(
        block=params.drafts or params.block, grid=params.grid, max_tokens=params.max_tokens,
        projection=_PROJECTIONS[params.projection], depth=depth,
        exact_only=bool(params.drafts) and not options.core_drafts,
    )  # fmt: skip
    mode = ssd_pb2.MODE_OPEN
    if options.privacy == "one-way":
        mode = ssd_pb2.MODE_ONE_WAY
        wire_params.temperature, wire_params.top_p = params.temperature, params.top_p
        wire_params.entropy_budget, wire_params.core_draw_key = params.entropy_budget, core_draw_key
    wire_codec = ssd_pb2.Codec(kind=WIRE_CODECS[codec.kind])
    if codec.kind == "top-k":
        wire_codec.k, wire_codec.residual = min(codec.k, info.spec.vocab), codec.residual
    return ssd_pb2.Open(
        protocol=PROTOCOL, model_id=info.spec.model_id, tokenizer_fingerprint=info.spec.tokenizer_fingerprint,
        prompt_ids=pack_ids(prompt_ids, info.spec.vocab), noise_key=noise_key, decoder=decoder, mode=mode,
        params=wire_params, codec=wire_codec,
    )  # fmt: skip


def public_settings(options: GenerateOptions, params: DecodeParams) -> dict[str, str]:
    """The settings that a node is told, in words."""
    told = {
        "decoder": options.decoder,
        "privacy": options.privacy,
        "codec": str(options.codec_spec()),
        "max-tokens": str(params.max_tokens),
        "projection": params.projection,
    }
    if params.drafts:
        told |= {"drafts": str(params.drafts), "drafts behind one another": str(params.depth)}
        told |= {"core-drafts": "yes" if options.core_drafts else "no"}
    elif options.decoder != "ar":
        told |= {"block": str(params.block), "steps": str(len(params.grid))}
    if options.privacy == "one-way":
        told |= {
            "temperature": f"{params.temperature:g}",
            "top-p": f"{params.top_p:g}",
            "entropy-budget": f"{params.entropy_budget:g}",
        }
    return told


def _one_of(flag: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{flag} must be one of {', '.join(known)}, not {value!r}")


def _between(flag: str, value: float | None, least: float, most: float) -> None:
    if value is not None and not least <= value <= most:
        raise UsageError(f"{flag} must lie between {least:g} and {most:g}, not {value:g}")
