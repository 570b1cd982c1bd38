"""The expert of a set, made by the device's own personalization, and the models that are measured around it.

While the expert trains, its weights are kept at some minutes: the points of the learning curve. Knows folders and
networks; nothing about what is measured with them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from ssd_client.errors import ExpertNotFound
from ssd_client.personalize import Event, PersonalizeOptions, Watch, learn, personalize
from ssd_client.prompt import Passage
from ssd_client.retrieval import find_passages
from ssd_client.store import ExpertCard, Store
from ssd_diffusion.engine import ModelSpec
from ssd_diffusion.models import folder as folders
from ssd_diffusion.models.engine import TorchEngine
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.tokenizer import Tokenizer
from ssd_diffusion.training import lora
from ssd_diffusion.training.loop import Progress
from ssd_diffusion.training.precision import cpu_has_bf16

from ssd_bench.console import progress_by
from ssd_bench.lines import digest
from ssd_bench.personal.sets import Split

MARKS = (1.0, 2.0, 4.0, 8.0)
"""Minutes of training at which weights are kept."""
_STEPS = 1000
_AFTER = {"base": 0.0, "ingest": 0.02, "index": 0.04, "train": 0.06, "sample": 0.82, "select": 0.84, "export": 0.9}
"""About where each stage begins, as a share of the whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How experts are made.

    Attributes:
        home: where they are kept.
        base: folder of the model that they start from.
        minutes: of training.
        seed: of everything random.
        marks: minutes of training at which weights are kept.
        changes: other fields of `PersonalizeOptions` that differ from the client's defaults.
    """

    home: Path
    base: Path
    minutes: float
    seed: int = 0
    marks: tuple[float, ...] = MARKS
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Made:
    """An expert that is there.

    Attributes:
        card: its card.
        folder: its files.
        home: of the store that it lies in.
        base: folder of the model that it was made from.
        curve: weights in training, by minute.
    """

    card: ExpertCard
    folder: Path
    home: Path
    base: Path
    curve: Mapping[float, Path]

    @property
    def minutes(self) -> float:
        """How long it was trained."""
        return float(self.card.hyperparameters.get("train_seconds", 0.0)) / 60

    def retrieve(self, text: str, limit: int) -> list[Passage]:
        """Passages of its documents for a text, best first, as `generate` finds them."""
        return find_passages(self.folder, self.home, text, limit)


def make(split: Split, training: Training, base_id: str) -> Made:
    """The expert of a set: the one that is there, or a new one; a run that was stopped goes on.

    Raises:
        ClientError, DiffusionError: it cannot be made.
    """
    name, store = name_of(split, training, base_id), Store(training.home)
    curve = training.home / "curve" / name
    try:
        card = store.show(name)
    except ExpertNotFound:
        options = PersonalizeOptions(
            folder=split.folder, name=name, base=training.base, train_minutes=training.minutes,
            max_minutes=2 * training.minutes + 3, resume=True, seed=training.seed, **training.changes,
        )  # fmt: skip
        curve.mkdir(parents=True, exist_ok=True)
        with progress_by(f"{split.name}: expert", _STEPS) as advance:
            card = personalize(
                options, home=training.home, progress=_moves(advance), watch=_keeper(curve, training.marks)
            )
    kept = {mark: path for mark in training.marks if (path := _mark(curve, mark)).is_file()}
    return Made(card, store.open(name), training.home, training.base, kept)


def name_of(split: Split, training: Training, base_id: str) -> str:
    """The expert's name: the set's, and what stands for its documents and how it is made."""
    how = [split.digest, base_id, training.minutes, training.seed, sorted(training.changes.items())]
    return f"{split.name[:40]}-{digest(how)}"


def _mark(folder: Path, minutes: float) -> Path:
    return folder / f"{minutes:g}.safetensors"


def _keeper(folder: Path, marks: Sequence[float]) -> Watch:
    """Writes what is trained when a mark is reached."""

    def watch(state: Progress, model: Ssd2Model) -> None:
        for mark in marks:
            path = _mark(folder, mark)
            if state.elapsed_s >= 60 * mark and not path.exists():
                trained = {n: p.detach().contiguous() for n, p in model.named_parameters() if p.requires_grad}
                save_file(trained, path)

    return watch


def _moves(advance: Callable[[int], None]) -> Callable[[Event], None]:
    """Moves a bar of _STEPS by what the stages tell."""
    starts = list(_AFTER)
    reached = 0

    def tell(event: Event) -> None:
        nonlocal reached
        if event.stage in _AFTER:
            following = [*starts, "register"][starts.index(event.stage) + 1]
            begins, ends = _AFTER[event.stage], _AFTER.get(following, 1.0)
            place = int(_STEPS * (begins + event.fraction * (ends - begins)))
        else:
            place = _STEPS
        if place > reached:
            advance(place - reached)
            reached = place

    return tell


@dataclass(frozen=True)
class Model:
    """A network that is read in float32, and written with in bfloat16 where the processor has it.

    Attributes:
        spec: what it is.
        reading: the network, in evaluation mode.
    """

    spec: ModelSpec
    reading: Ssd2Model

    @cached_property
    def writing(self) -> Ssd2Model:
        """The weights that answers are written with."""
        return copy.deepcopy(self.reading).to(torch.bfloat16) if cpu_has_bf16() else self.reading

    def engine(self, *, slots: int, batch_width: int) -> TorchEngine:
        """An engine on the weights that answers are written with."""
        return TorchEngine(self.writing, self.spec, slots=slots, batch_width=batch_width)


@dataclass(frozen=True, slots=True)
class Trio:
    """Who is measured on a set.

    Attributes:
        core: the general model.
        before: what the expert was made from; the same object as the core where both are one model.
        after: the expert.
        tokenizer: shared.
        made: the expert's card, index and curve.
    """

    core: Model
    before: Model
    after: Model
    tokenizer: Tokenizer
    made: Made


def open_base(core: Path, base: Path) -> tuple[Model, Model, Tokenizer]:
    """Core, base of the experts and their tokenizer.

    Raises:
        InvalidModel: a folder is not what it should be.
        ValueError: the two have different vocabularies.
    """
    general = _load(core)
    own = general if base.resolve() == core.resolve() else _load(base)
    if general.spec.tokenizer_fingerprint != own.spec.tokenizer_fingerprint:
        raise ValueError(f"{base} has another vocabulary than {core}; give --base a model that shares the core's")
    return general, own, Tokenizer.load(core)


def open_expert(made: Made) -> Model:
    """The expert's network, its adapter merged.

    Raises:
        InvalidModel: its files are not what they should be.
    """
    model, spec = folders.load(made.base)
    wrapped = lora.load_adapter(model, made.folder / "adapter")
    model.causal = wrapped.merge_and_unload()
    return Model(spec, model.eval())


def open_mark(made: Made, path: Path) -> Model:
    """The network as it was at a mark of its training.

    Raises:
        InvalidModel: the file is damaged or of another model.
    """
    model, spec = folders.load(made.base)
    options = PersonalizeOptions(folder=made.folder, name="mark", rank=int(made.card.hyperparameters["rank"]))
    wrapped, _ = learn.attach(model, options, None)
    state = lora.read_tensors(path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(state[name])
    model.causal = wrapped.merge_and_unload()
    return Model(spec, model.eval())


def _load(folder: Path) -> Model:
    model, spec = folders.load(folder)
    return Model(spec, model)
