"""What an answer was: its text, and the numbers beside it; and what one sees of it while it forms.

Knows nothing about models or nodes; it counts the events it is shown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from ssd_diffusion.sampler import FinishReason, StepEvent
from ssd_diffusion.tokenizer import Tokenizer

from ssd_client.prompt import Passage


@dataclass(frozen=True, slots=True)
class Progress:
    """An answer in the making.

    Attributes:
        settled: text that will not change any more.
        estimate: what the rest of the window looks like now.
        tokens: settled tokens.
        steps: passes so far.
        core_share: the core's share in the settled tokens, 0 to 1.
        lost: why the core is gone, when it is.
    """

    settled: str
    estimate: str
    tokens: int
    steps: int
    core_share: float
    lost: str | None = None


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A finished answer.

    Attributes:
        text: the words.
        tokens: tokens of the answer, its end token included.
        steps: passes of the ensemble.
        core_steps: passes in which the core computed.
        forward_passes: passes of each member's network, prompts included.
        seconds: wall time, from the call to the last token.
        first_seconds: from the call to the first estimate that a user sees.
        bytes_up, bytes_down: serialised messages to and from the node.
        members: who took part.
        shares: share of each member in the answer's tokens; they sum to 1.
        passages: passages of the documents that the expert was shown.
        privacy: "open", "one-way", or "offline" where no node took part.
        seed: gives the same text again on this device.
        finish_reason: "stop" or "length".
        lam, alpha: weights that were used.
        decoder, codec, block, grid, temperature, top_p, entropy_budget, drafts, leniency: how it was decoded.
        tv_bound: mean and worst total-variation bound of a sparse codec, or None.
        expert, node, model_id: who they were.
        session: the answer's name in the ledger.
        reconnects: how often the node was lost and found again.
        notes: one-line remarks for the user.
    """

    text: str
    tokens: int
    steps: int
    core_steps: int
    forward_passes: dict[str, int]
    seconds: float
    first_seconds: float
    bytes_up: int
    bytes_down: int
    members: tuple[str, ...]
    shares: dict[str, float]
    passages: tuple[Passage, ...]
    privacy: str
    seed: int
    finish_reason: FinishReason
    lam: float
    alpha: float
    decoder: str
    codec: str | None
    block: int
    grid: tuple[float, ...]
    temperature: float
    top_p: float
    entropy_budget: float
    drafts: int
    leniency: float
    tv_bound: dict[str, float] | None
    expert: str
    node: str | None
    model_id: str | None
    session: str
    reconnects: int
    notes: tuple[str, ...]

    def to_json(self, *, with_text: bool = False) -> dict[str, object]:
        """The answer for programs; passages with their words only where asked for."""
        data = asdict(self)
        if not with_text:
            for passage in data["passages"]:
                del passage["text"]
        return data


class Tally:
    """Counts events and keeps the text.

    Args:
        tokenizer: turns ids into text.
        eos_ids: tokens that end an answer; they are counted, not shown.
        on_progress: told after every pass, or None.
    """

    def __init__(self, tokenizer: Tokenizer, eos_ids: tuple[int, ...], on_progress: OnProgress | None) -> None:
        self._tokenizer, self._eos, self._on_progress = tokenizer, eos_ids, on_progress
        self._stream = tokenizer.stream()
        self._settled = ""
        self._core = 0.0
        self.tokens = 0
        self.steps = 0
        self.core_steps = 0
        self.finish: FinishReason | None = None

    @property
    def core_share(self) -> float:
        """The core's mean share in the settled tokens."""
        return self._core / self.tokens if self.tokens else 0.0

    def add(self, event: StepEvent, *, lost: str | None) -> None:
        """Take one pass."""
        self.steps += 1
        self.core_steps += event.core_asked
        self.tokens += len(event.committed)
        self._core += float(np.sum(event.core_share))
        self.finish = event.finish
        self._settled += self._stream.push([int(t) for t in event.committed if t not in self._eos])
        if self._on_progress is not None:
            estimate = "" if event.finish else self._estimate(event)
            self._on_progress(Progress(self._settled, estimate, self.tokens, self.steps, self.core_share, lost))

    def text(self) -> str:
        """The whole text, once."""
        self._settled += self._stream.finish()
        return self._settled

    def _estimate(self, event: StepEvent) -> str:
        ids = event.decision.estimate[len(event.committed) :].tolist()
        end = next((i for i, token in enumerate(ids) if token in self._eos), len(ids))
        return self._tokenizer.decode(ids[:end])
