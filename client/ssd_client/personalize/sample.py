"""One held-out text, continued by the base and by the trained expert: what was learned, for people to look at.

Both read the same opening and nothing else, open one position at a time and take the most probable token, so every
difference is the training's. The text is of the half that chooses nothing, and is not picked by how it goes. Keeps to a
time limit. Knows nothing about files, cards or terminals.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

from ssd_diffusion.engine import ModelSpec
from ssd_diffusion.ensemble import Ensemble, Weights
from ssd_diffusion.errors import DiffusionError
from ssd_diffusion.members import EngineMember
from ssd_diffusion.models.engine import TorchEngine
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.sampler import DecodeParams, denoise
from ssd_diffusion.tokenizer import Tokenizer
from ssd_kernels.types import I32

from ssd_client.personalize.corpus import Unit

TOKENS = 24
_OPENING = 32
_LEAST = 8  # tokens that an opening, and a continuation that was cut by the clock, must have to show anything
_LEAST_S = 1.0


@dataclass(frozen=True, slots=True)
class Sample:
    """How a held-out text goes on, three times.

    Attributes:
        document: path of the document.
        opening: its first tokens, what base and expert read.
        goes_on: how the document itself goes on.
        before, after: how the base and the expert go on; empty where one ends the text at once.
        tokens: length of the longer of the two.
    """

    document: str
    opening: str
    goes_on: str
    before: str
    after: str
    tokens: int

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class NoSample:
    """Why there is nothing to show, as the end of a sentence."""

    reason: str

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"reason": self.reason}


def sample(
    base: Ssd2Model, expert: Ssd2Model, spec: ModelSpec, tokenizer: Tokenizer, report: Sequence[Unit], seconds: float
) -> Sample | NoSample:
    """Continue the first text of the reported half that is long enough.

    Args:
        base, expert: before and after training, of one vocabulary.
        spec: of both.
        tokenizer: of both.
        report: held-out texts that selected nothing, in the order in which they were drawn.
        seconds: longest time; what is written by then is shown.
    """
    if not report:
        return NoSample("no text was held out for the report")
    until_s = time.monotonic() + seconds
    texts = [(unit.path, _from_subject(unit, tokenizer)) for unit in report]
    path, ids = next((t for t in texts if len(t[1]) >= _OPENING + TOKENS), max(texts, key=lambda t: len(t[1])))
    if len(ids) < 2 * _LEAST:
        return NoSample("the texts that were held out for the report are too short")
    if seconds < _LEAST_S:
        return NoSample("there was no time left within --max-minutes")
    place = _opening_end(ids, tokenizer)
    params = DecodeParams(
        block=1, grid=(1.0,), max_tokens=TOKENS, projection="greedy", entropy_budget=0.0, eos_ids=tokenizer.eos_ids
    )
    try:
        before, after, ended = _both((base, expert), spec, ids[:place], params, until_s)
    except DiffusionError as error:  # something to look at is no reason to lose an expert
        return NoSample(str(error))
    tokens = max(len(before), len(after))
    if tokens < _LEAST and not ended:
        return NoSample(f"{seconds:.0f} s were not enough to write {_LEAST} tokens")
    return Sample(
        document=path, opening=tokenizer.decode(ids[:place]), goes_on=tokenizer.decode(ids[place : place + TOKENS]),
        before=tokenizer.decode(before), after=tokenizer.decode(after), tokens=tokens,
    )  # fmt: skip


def _both(
    models: tuple[Ssd2Model, Ssd2Model], spec: ModelSpec, opening: I32, params: DecodeParams, until_s: float
) -> tuple[list[int], list[int], bool]:
    """Token ids by each, in step with each other so that a clock cuts both at the same length; and whether both ended.

    Raises:
        DiffusionError: the opening does not fit, or a model gives no usable logits.
    """
    written: tuple[list[int], list[int]] = ([], [])
    with ExitStack() as stack:
        writers = [stack.enter_context(closing(_tokens(model, spec, opening, params))) for model in models]
        for pair in zip_longest(*writers, fillvalue=()):
            for ids, new in zip(written, pair, strict=True):
                ids.extend(new)
            if time.monotonic() >= until_s:
                return *written, False
    return *written, True


def _tokens(model: Ssd2Model, spec: ModelSpec, opening: I32, params: DecodeParams) -> Generator[tuple[int, ...]]:
    """What each pass of one model alone commits."""
    member = EngineMember(TorchEngine(model, spec, slots=1), 0, opening, name="expert")
    with Ensemble(core=None, private=member, public=None, weights=Weights(lam=1.0)) as alone:
        for event in denoise(alone, params, noise_key=0, draw_key=0):  # greedy from pure noise: neither key is used
            yield tuple(int(i) for i in event.committed)


def _from_subject(unit: Unit, tokenizer: Tokenizer) -> I32:
    """A text's tokens; of a mail those from its subject on, for addresses and dates show nothing. [n]"""
    head = unit.text.partition("\n\n")[0]
    subject = head.find("\nSubject: ")
    return tokenizer.encode(unit.text[subject + 1 :]) if head.startswith("From: ") and subject >= 0 else unit.ids


def _opening_end(ids: I32, tokenizer: Tokenizer) -> int:
    """How many tokens the opening has: up to 32, less where the text is short, ending with a whole word if one does."""
    most = min(_OPENING, len(ids) // 2)
    for place in range(most, max(_LEAST, most - 6) - 1, -1):
        if tokenizer.decode(ids[place : place + 1])[:1].isspace():
            return place
    return most
