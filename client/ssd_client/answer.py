"""One answer on this device: the expert from the store, its private context, the core on a node, one decoding.

Needs onnxruntime, numpy, numba, tokenizers and grpcio; neither torch nor transformers. Without a node, or when it is
lost, the expert writes alone and the answer says so. Knows nothing about the terminal.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from ssd_diffusion import autoregressive, keys, lookahead, sampler
from ssd_diffusion.engine import Engine, Member
from ssd_diffusion.ensemble import Ensemble, Weights
from ssd_diffusion.errors import DiffusionError
from ssd_diffusion.home import device_secret
from ssd_diffusion.lookahead import Drafter
from ssd_diffusion.members import EngineMember
from ssd_diffusion.sampler import DecodeParams, StepEvent
from ssd_diffusion.ssdlm import BlockState, decode_blocks
from ssd_diffusion.tokenizer import Tokenizer
from ssd_diffusion.window import WindowState
from ssd_kernels.errors import KernelError
from ssd_kernels.warm import warm_up

from ssd_client import consent
from ssd_client.consent import Ask, Disclosure
from ssd_client.errors import LedgerError, NodeMismatch, NodeRefused, NodeUnreachable, StoreError, UsageError
from ssd_client.ledger import Ledger
from ssd_client.node import Address, NodeChannel, NodeInfo, check_tokenizer
from ssd_client.oneway import OneWaySource, decode_one_way
from ssd_client.options import GenerateOptions, decode_params, opening, public_settings, with_drafts
from ssd_client.prompt import Contexts, Prompt, build_contexts, parse_prompt, read_private
from ssd_client.received import Received
from ssd_client.remote import RemoteMember
from ssd_client.report import Answer, OnProgress, Tally
from ssd_client.retrieval import find_passages
from ssd_client.store import ExpertCard, Store

LEDGER_FILE = "ledger.sqlite"
SECRET_VARIABLE = "SSD_DEVICE_SECRET_FILE"
_SECRET_BYTES = 32
_DESCRIBE_S = 10.0

OnStage = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Expert:
    """An expert that is ready to answer.

    Attributes:
        card: its model card.
        folder: its files.
        tokenizer: its tokenizer.
        engine: its model, with a slot for each of its contexts.
        transition: what two tokens say about a draft behind them; None where its model has learned nothing of it.
    """

    card: ExpertCard
    folder: Path
    tokenizer: Tokenizer
    engine: Engine
    transition: Drafter | None = None


@dataclass(slots=True)
class _Core:
    """A described node, or the reason why there is none."""

    address: Address | None = None
    channel: NodeChannel | None = None
    info: NodeInfo | None = None
    ledger: Ledger | None = None
    note: str | None = None


@dataclass(slots=True)
class _Run:
    """What one answer has put together before it decodes."""

    options: GenerateOptions
    expert: Expert
    core: _Core
    contexts: Contexts
    params: DecodeParams
    weights: Weights
    seed: int
    draw_key: int
    session: str
    notes: list[str] = field(default_factory=list)


def generate(
    options: GenerateOptions,
    *,
    home: Path,
    on_progress: OnProgress | None = None,
    on_stage: OnStage | None = None,
    ask: Ask | None = None,
    opened: Expert | None = None,
) -> Answer:
    """Write one answer.

    Args:
        options: what the user chose.
        home: the folder of experts, ledger and secret.
        on_progress: told after every pass.
        on_stage: told in a word what is being done before the first pass.
        ask: asks for the user's agreement to what leaves; None when nobody can be asked.
        opened: the expert, where it is open already; it writes one answer at a time.

    Raises:
        ClientError: one sentence for the user.
        DiffusionError: the same, from below (a prompt that is too long, a broken model).
    """
    started = time.monotonic()
    stage = on_stage or (lambda _: None)
    prompt = parse_prompt(options.prompt)
    threading.Thread(target=_warm, name="warm-up", daemon=True).start()
    stage("loading the expert")
    expert = opened or open_expert(Store(home), options.expert)
    session = secrets.token_hex(8)
    with ExitStack() as stack:
        core = _reach(options, expert, home, session, stack, stage)
        stage("reading your documents")
        run = _prepare(options, prompt, expert, core, home, session)
        if core.ledger is not None:
            asked = time.monotonic()
            consent.require(_disclosure(run, prompt), core.ledger, yes=options.yes, ask=ask)
            started += time.monotonic() - asked  # the user's time is not the answer's
        stage("answering")
        return _decode(run, on_progress, started)


def _warm() -> None:
    """Load the compiled kernels while the expert loads; what is wrong with them, the answer itself says."""
    with contextlib.suppress(KernelError):
        warm_up()


def preview(options: GenerateOptions, *, home: Path) -> tuple[Disclosure | None, Contexts]:
    """What `generate` would send and show to whom; sends nothing, not even a question to the node.

    Raises: as `generate`.
    """
    prompt = parse_prompt(options.prompt)
    expert = open_expert(Store(home), options.expert)
    address = None if options.offline or not options.node else _address(options)
    run = _prepare(options, prompt, expert, _Core(address=address), home, "")
    return (_disclosure(run, prompt) if address is not None else None), run.contexts


def open_expert(store: Store, name: str | None) -> Expert:
    """The expert of this name, or the only one there is.

    Raises:
        UsageError: no expert, or several and no name.
        StoreError, InvalidModel: its files are not what they should be.
    """
    from ssd_diffusion.onnx_engine import OnnxEngine, load_transition

    chosen = name or _only(store)
    folder, card = store.open(chosen), store.show(chosen)
    tokenizer = Tokenizer.load(folder)
    return Expert(card, folder, tokenizer, OnnxEngine(folder, slots=2), load_transition(folder))


def answer_secret(home: Path) -> bytes:
    """The device's secret, or the one in the file that $SSD_DEVICE_SECRET_FILE names (for tests and moved devices).

    Raises:
        UsageError, StoreError: no such file, or not 32 bytes.
    """
    named = os.environ.get(SECRET_VARIABLE)
    if not named:
        try:
            return device_secret(home)
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot read the device secret ({error}); make it readable, or remove it") from error
    try:
        path = Path(named).expanduser()
        if not path.is_file() or path.stat().st_size != _SECRET_BYTES:
            raise UsageError(f"{named} is no file of {_SECRET_BYTES} bytes; correct ${SECRET_VARIABLE}, or unset it")
        return path.read_bytes()
    except (OSError, RuntimeError) as error:  # RuntimeError: the ~ of nobody
        raise UsageError(f"cannot read {named} ({error}); correct ${SECRET_VARIABLE}, or unset it") from error


def _only(store: Store) -> str:
    names = [card.name for card in store.list()]
    if not names:
        for name, reason in store.damaged():
            raise StoreError(f"expert {name} cannot be used: {reason}")
        raise UsageError("there is no expert yet; make one with: ssd-client personalize DIR --name NAME")
    if len(names) > 1:
        raise UsageError(f"there are several experts; choose one with --expert: {', '.join(names)}")
    return names[0]


def _address(options: GenerateOptions) -> Address:
    return Address.parse(options.node or "", ca=options.ca, insecure=options.insecure)


def _reach(
    options: GenerateOptions, expert: Expert, home: Path, session: str, stack: ExitStack, stage: OnStage
) -> _Core:
    """Ask the node what it serves: one that cannot help leaves the expert alone, one that does not fit is refused."""
    if options.offline:
        return _Core()
    if not options.node:
        return _Core(note="no node was named (--node HOST:PORT), so the expert wrote this answer alone")
    address = _address(options)
    stage(f"asking the node at {address.target}")
    try:
        ledger = stack.enter_context(Ledger(home / LEDGER_FILE))
        channel = stack.enter_context(NodeChannel(address, options.token, ledger.sink(session)))
        info = channel.describe(min(_DESCRIBE_S, options.deadline_s))
    except (NodeUnreachable, NodeRefused, LedgerError) as error:
        return _Core(address=address, note=f"{error}; the expert wrote this answer alone")
    spec = expert.engine.spec
    check_tokenizer(info, fingerprint=spec.tokenizer_fingerprint, vocab=spec.vocab, whose=f"expert {expert.card.name}")
    if (info.spec.family, info.spec.simplex_k) != (spec.family, spec.simplex_k):
        raise NodeMismatch(
            f"the node's model is of another kind ({info.spec.family}, K {info.spec.simplex_k:g}) than expert "
            f"{expert.card.name} ({spec.family}, K {spec.simplex_k:g}); use another node, or --offline"
        )
    return _Core(address, channel, info, ledger)


def _prepare(options: GenerateOptions, prompt: Prompt, expert: Expert, core: _Core, home: Path, session: str) -> _Run:
    spec = core.info.spec if core.info is not None else expert.engine.spec
    eos_ids = tuple(sorted({*spec.eos_ids, *expert.engine.spec.eos_ids}))
    decoders = core.info.decoders if core.info is not None else None
    options = with_drafts(options, taught=expert.transition is not None, decoders=decoders)
    params = decode_params(options, spec, eos_ids)
    contexts = build_contexts(
        expert.tokenizer,
        prompt,
        private=[read_private(text) for text in options.private],
        passages=find_passages(expert.folder, home, prompt.full, options.passages),
        expert_room=expert.engine.spec.max_context - options.max_tokens,
        core_room=core.info.spec.max_context - options.max_tokens if core.info is not None else None,
    )
    card = expert.card
    weights = Weights(
        lam=card.lam if options.lam is None else options.lam,
        alpha=card.alpha if options.alpha is None else options.alpha,
        core_every=options.core_every,
    )
    seed = keys.new_seed() if options.seed is None else options.seed
    draw_key = keys.draw_key(answer_secret(home), seed)
    notes = [core.note] if core.note else []
    return _Run(options, expert, core, contexts, params, weights, seed, draw_key, session, notes)


def _disclosure(run: _Run, prompt: Prompt) -> Disclosure:
    address, info = run.core.address, run.core.info
    if address is None:
        raise StoreError("there is no node to send anything to")
    return Disclosure(
        node=address.target,
        encrypted=address.tls,
        model=info.spec.model_id if info is not None else None,
        privacy=run.options.privacy,
        public_text=run.contexts.core_text,
        prompt_tokens=len(run.contexts.core_ids),
        settings=public_settings(run.options, run.params),
        hidden=len(prompt.hidden),
        private_texts=len(run.options.private),
        passages=tuple(passage.title for passage in run.contexts.passages),
    )


def _decode(run: _Run, on_progress: OnProgress | None, started: float) -> Answer:
    """Put the members together and write."""
    expert, contexts = run.expert, run.contexts
    private = EngineMember(expert.engine, 0, contexts.expert_ids, name="expert")
    public: EngineMember | None = None
    if run.weights.alpha > 0 and len(contexts.expert_ids) != len(contexts.core_ids):
        public = EngineMember(expert.engine, 1, contexts.core_ids, name="expert without context")
    tally = Tally(expert.tokenizer, run.params.eos_ids, on_progress)
    member, received = _core_member(run) or (None, None)
    if isinstance(member, RemoteMember) and received is not None:
        received.ask = member.again
    review = received.review if received is not None else None
    with Ensemble(
        core=member, private=private, public=public, weights=run.weights, review=review,
        core_drafts=run.options.core_drafts,
    ) as ensemble:  # fmt: skip
        try:
            first: float | None = None
            for event in _events(run, ensemble, member, private, public):
                tally.add(event, lost=ensemble.lost)
                first = first or time.monotonic() - started
            seconds = time.monotonic() - started
        except KeyboardInterrupt:
            if member is not None:
                member.abort()
            raise
        finally:
            if isinstance(member, OneWaySource):  # to the node's end, whatever became of the answer
                member.finish()
        members = [one for one in (member, private, public) if one is not None]
        passes = {one.name: one.forward_passes for one in members}
        if ensemble.lost is not None:
            run.notes.append(f"the core was lost ({ensemble.lost}); the expert went on alone")
        elif isinstance(member, OneWaySource) and tally.core_steps < tally.steps:
            run.notes.append("the core's own text ended first; the expert wrote the rest alone")
    return _answer(run, tally, member, passes, received, seconds=seconds, first=first or seconds)


def _core_member(run: _Run) -> tuple[RemoteMember | OneWaySource, Received] | None:
    channel, info = run.core.channel, run.core.info
    if channel is None or info is None:
        return None
    options = run.options
    received = Received(
        options.codec_spec(), vocab=info.spec.vocab, tail=info.tail, weights=run.weights, limit=options.tv_limit
    )
    first = opening(
        options, run.params, info, run.contexts.core_ids.tolist(),
        noise_key=keys.noise_key(run.seed), core_draw_key=keys.core_draw_key(run.seed),
    )  # fmt: skip
    if options.privacy == "one-way":
        return OneWaySource(channel, info.spec, first, reader=received, deadline_s=options.deadline_s), received
    member = RemoteMember(channel, info.spec, first, reader=received, deadline_s=options.deadline_s, wire=options.wire)
    return member, received


def _events(
    run: _Run, ensemble: Ensemble, core: Member | None, private: Member, public: Member | None
) -> Iterator[StepEvent]:
    params, draw_key, noise_key = run.params, run.draw_key, keys.noise_key(run.seed)
    decoder = run.options.decoder
    if isinstance(core, OneWaySource):
        state = BlockState if decoder == "ssdlm" else WindowState
        begin = state.begin(grid=params.grid, noise_key=noise_key, block=params.block, limit=params.max_tokens)
        alone = Ensemble(core=None, private=private, public=public, weights=run.weights)
        bounds = run.core.info.bounds.max_set_ids if run.core.info is not None else 1
        return decode_one_way(
            ensemble, alone, core, params, begin,
            autoregressive=decoder == "ar", draw_key=draw_key, max_set_ids=bounds,
        )  # fmt: skip
    if params.drafts:
        return lookahead.decode(
            ensemble, params, run.contexts.expert_ids, run.expert.transition, noise_key=noise_key, draw_key=draw_key
        )
    if decoder == "ar":
        return autoregressive.decode(ensemble, params, draw_key=draw_key)
    if decoder == "ssdlm":
        return decode_blocks(ensemble, params, noise_key=noise_key, draw_key=draw_key)
    return sampler.denoise(ensemble, params, noise_key=noise_key, draw_key=draw_key)


def _answer(
    run: _Run,
    tally: Tally,
    core: RemoteMember | OneWaySource | None,
    passes: dict[str, int],
    received: Received | None,
    *,
    seconds: float,
    first: float,
) -> Answer:
    options, info, channel = run.options, run.core.info, run.core.channel
    bound = received.bound() if received is not None else None
    if tally.finish is None:
        raise DiffusionError("the answer ended without a reason; please report this")
    share = tally.core_share
    return Answer(
        text=tally.text(),
        tokens=tally.tokens,
        steps=tally.steps,
        core_steps=tally.core_steps,
        forward_passes=passes,
        seconds=round(seconds, 3),
        first_seconds=round(first, 3),
        bytes_up=channel.meter.bytes_up if channel is not None else 0,
        bytes_down=channel.meter.bytes_down if channel is not None else 0,
        members=tuple(passes),
        shares={"core": share, "expert": 1.0 - share} if core is not None else {"expert": 1.0},
        passages=run.contexts.passages,
        privacy=options.privacy if core is not None else "offline",
        seed=run.seed,
        finish_reason=tally.finish,
        lam=run.weights.lam,
        alpha=run.weights.alpha,
        decoder=options.decoder,
        codec=str(options.codec_spec()) if core is not None else None,
        block=run.params.block,
        grid=run.params.grid,
        temperature=run.params.temperature,
        top_p=run.params.top_p,
        entropy_budget=run.params.entropy_budget,
        drafts=run.params.drafts,
        leniency=run.params.leniency,
        tv_bound={"mean": bound.mean, "worst": bound.worst, "asked_again": bound.asked_again} if bound else None,
        expert=run.expert.card.name,
        node=run.core.address.target if run.core.address is not None else None,
        model_id=info.spec.model_id if info is not None else None,
        session=run.session,
        reconnects=core.reconnects if isinstance(core, RemoteMember) else 0,
        notes=tuple(run.notes),
    )
