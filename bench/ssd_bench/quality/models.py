"""Core and base under measurement: in float32 to be read, in bfloat16 to write where the processor has it.

Knows model folders and engines; nothing about settings' names, prompts or judges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import transformers
from ssd_diffusion.drafting import TransitionMaps
from ssd_diffusion.engine import ModelSpec
from ssd_diffusion.lookahead import Drafter
from ssd_diffusion.models import folder as folders
from ssd_diffusion.models.engine import TorchEngine
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.tokenizer import Tokenizer
from ssd_diffusion.training.precision import cpu_has_bf16
from ssd_diffusion.window import Window
from ssd_kernels.types import F32


class UnconditionedEngine(TorchEngine):
    """The engine with its self-conditioning taken away: every pass begins as a first one does."""

    def step(self, slots: Sequence[int], windows: Sequence[Window]) -> list[F32]:
        """See `TorchEngine.step`."""
        for number in slots:
            self._slots[number].sc_in = self._slots[number].sc_out = None
        return super().step(slots, windows)


@dataclass(frozen=True)
class Opened:
    """A model folder.

    Attributes:
        folder: where it lies.
        spec: what it is.
        reading: in float32, for likelihoods.
    """

    folder: Path
    spec: ModelSpec
    reading: Ssd2Model

    @cached_property
    def writing(self) -> Ssd2Model:
        """The weights that texts are written with."""
        return folders.load(self.folder, dtype=torch.bfloat16)[0] if cpu_has_bf16() else self.reading

    @cached_property
    def drafter(self) -> Drafter | None:
        """What the model has learned about the tokens before a draft; None where it was not taught."""
        return TransitionMaps.of(self.reading) if self.reading.transition is not None else None

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The folder's tokenizer."""
        return Tokenizer.load(self.folder)

    def engine(self, *, slots: int, batch_width: int, conditioned: bool) -> TorchEngine:
        """An engine on the weights that texts are written with."""
        kind = TorchEngine if conditioned else UnconditionedEngine
        return kind(self.writing, self.spec, slots=slots, batch_width=batch_width)


def open_model(folder: Path) -> Opened:
    """A model folder of the SSD-2 family.

    Raises:
        InvalidModel: it is not what it should be.
    """
    transformers.utils.logging.disable_progress_bar()
    model, spec = folders.load(folder)
    return Opened(folder, spec, model)


def open_pair(core: Path, base: Path) -> tuple[Opened, Opened]:
    """The core and its autoregressive base.

    Raises:
        InvalidModel: a folder is not what it should be.
        ValueError: the two have different vocabularies.
    """
    pair = open_model(core), open_model(base)
    if pair[0].spec.tokenizer_fingerprint != pair[1].spec.tokenizer_fingerprint:
        raise ValueError(f"{base} has another vocabulary than {core}; give --base the decoder that the core came from")
    return pair
