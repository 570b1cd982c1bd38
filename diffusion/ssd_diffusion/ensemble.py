"""The members' logits, added: one step of the ensemble (SSD-2, "David helps Goliath"; our reconstruction).

    fused = (1 - lam) log_softmax(core | prompt)
            + lam [(1 + alpha) log_softmax(expert | private context, prompt) - alpha log_softmax(expert | prompt)]

The core's forward runs beside the device's. A core that is lost in the middle leaves the expert to go on alone. Knows
nothing about sampling, tokens that end an answer, or where a member runs.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TypeAlias

import numpy as np
from ssd_kernels.combine import fuse, log_softmax
from ssd_kernels.types import F32, F64, I32

from ssd_diffusion.engine import Member
from ssd_diffusion.errors import DiffusionError, MemberLost
from ssd_diffusion.members import step_together
from ssd_diffusion.window import Window

Review: TypeAlias = Callable[[F32, F32 | None, F32 | None], F32]
"""(core, private, public logits) -> core logits to use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """How the members are weighed.

    Attributes:
        lam: weight of the expert in [0, 1]; the core has 1 - lam.
        alpha: strength of the contrast between the expert with and without its private context, >= 0.
        contrast_top_p: the contrast acts on the expert's own nucleus of this mass only (it would amplify tail noise).
        normalise: False adds raw logits instead of log-probabilities.
        core_every: ask the core only every m-th pass and use its last logits between (public, off at 1).
    """

    lam: float = 0.5
    alpha: float = 0.0
    contrast_top_p: float = 0.95
    normalise: bool = True
    core_every: int = 1

    def __post_init__(self) -> None:
        if not 0.0 <= self.lam <= 1.0:
            raise ValueError(f"lambda must be between 0 and 1, not {self.lam}")
        if not 0.0 <= self.alpha < float("inf"):
            raise ValueError(f"alpha must be 0 or more, not {self.alpha}")
        if self.core_every < 1:
            raise ValueError(f"core-every must be at least 1, not {self.core_every}")


@dataclass(frozen=True, slots=True)
class EnsembleStep:
    """Result of one pass.

    Attributes:
        fused: log-probabilities of the window's exact rows. [window.exact, V]
        core: the core's logits, all rows, or None when it had no say.
        private: the expert's logits with private context, all rows, or None.
        core_asked: True when the core computed in this pass.
        ahead: fused log-probabilities of the positions ahead of an exact row (0: the committed text, i + 1: draft i).
            [window.ahead, V]; computed when asked for, since one of them is the last to stand.
    """

    fused: F32
    core: F32 | None
    private: F32 | None
    core_asked: bool
    ahead: Callable[[int], F32]


class Ensemble:
    """Core and expert as one model. A context manager; closing gives back what the members hold.

    Args:
        core: the general member, or None (offline).
        private: the expert with private context and prompt, or None (core alone).
        public: the expert with the prompt alone; only where alpha > 0.
        weights: how they are weighed.
        review: called after all members answered; may return other core logits (a wider answer of a sparse codec).
        core_drafts: whether the core computes the rows ahead too, looking ahead; without an expert it always does. The
            expert without private context never does: it says little there, and drafts change no text.

    Raises:
        ValueError: no member at all.
        DiffusionError: members with different vocabularies.
    """

    def __init__(
        self,
        *,
        core: Member | None,
        private: Member | None,
        public: Member | None,
        weights: Weights,
        review: Review | None = None,
        core_drafts: bool = True,
    ) -> None:
        members = [m for m in (core, private, public) if m is not None]
        if core is None and private is None:
            raise ValueError("an ensemble needs a core or an expert")
        if len({m.spec.vocab for m in members}) > 1 or len({m.spec.tokenizer_fingerprint for m in members}) > 1:
            raise DiffusionError("the members have different vocabularies; choose an expert made for this core")
        self._core, self._private, self._public = core, private, public
        self._weights, self._review = weights, review
        self._core_drafts = core_drafts or private is None
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="core") if core else None
        self._stale: tuple[int, F32] | None = None  # (start, logits) of the core's last answer
        self.lost: str | None = None

    def __enter__(self) -> Ensemble:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def members(self) -> tuple[Member, ...]:
        """The members that still take part."""
        return tuple(m for m in (self._core, self._private, self._public) if m is not None)

    def step(self, window: Window, committed: I32) -> EnsembleStep:
        """Fused log-probabilities for a window, after the tokens committed since the call before.

        Raises:
            MemberLost: the core is gone and there is no expert, or the expert itself failed.
        """
        asked = window.step % self._weights.core_every == 0
        exact = window.exact_only()
        seen = window if self._core_drafts else exact
        core_call = self._ask_core(lambda core: _step_or_skip(core, seen, committed, asked=asked))
        private, public = self._local(window, exact, committed)
        core = self._answer(core_call, private, public, window.exact)
        if core is not None:
            self._stale = (window.start, core)
        elif self._core is not None:
            core = self._shifted(window)
        return self._combine(core, private, public, window, asked=asked and self._core is not None)

    def _local(self, window: Window, exact: Window, committed: I32) -> tuple[F32 | None, F32 | None]:
        """The expert's logits with and without private context."""
        if self._private is None:
            return None, None if self._public is None else self._public.step(exact, committed)
        if self._public is None:
            return self._private.step(window, committed), None
        return step_together(self._private, self._public, (window, exact), committed)

    def next(self, committed: I32) -> EnsembleStep:
        """The autoregressive twin: fused next-token log-probabilities [1, V]."""
        core_call = self._ask_core(lambda core: core.next(committed)[None])
        private = self._private.next(committed)[None] if self._private else None
        public = self._public.next(committed)[None] if self._public else None
        core = self._answer(core_call, private, public, 1)
        return self._combine(core, private, public, None, asked=core is not None)

    def shares(self, step: EnsembleStep, rows: I32, tokens: I32) -> F64:
        """The core's share in tokens chosen at rows: (1 - lam) p_core / ((1 - lam) p_core + lam p_expert). [n]"""
        if step.core is None or step.private is None:
            return np.full(len(rows), 0.0 if step.core is None else 1.0)
        core = np.exp(log_softmax(step.core[rows])[np.arange(len(rows)), tokens].astype(np.float64))
        expert = np.exp(log_softmax(step.private[rows])[np.arange(len(rows)), tokens].astype(np.float64))
        mine, theirs = (1 - self._weights.lam) * core, self._weights.lam * expert
        return np.asarray((mine + 1e-300) / (mine + theirs + 2e-300))

    def close(self) -> None:
        """Give back what the members hold. Safe to call twice."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        for member in self.members:
            member.close()

    def _ask_core(self, call: Callable[[Member], F32 | None]) -> Future[F32 | None] | None:
        return self._pool.submit(call, self._core) if self._core is not None and self._pool is not None else None

    def _answer(
        self, call: Future[F32 | None] | None, private: F32 | None, public: F32 | None, exact: int
    ) -> F32 | None:
        if call is None:
            return None
        try:
            logits = call.result()
            if logits is not None and self._review is not None:
                # Rows ahead only draft: what they leave out costs no token its place.
                shown = [None if rows is None else rows[:exact] for rows in (private, public)]
                reviewed = self._review(logits[:exact], *shown)
                logits = reviewed if exact == len(logits) else np.concatenate([reviewed, logits[exact:]])
        except MemberLost as error:
            if self._private is None or self._core is None:
                raise
            self.lost = str(error)
            self._core.close()
            self._core = None
            return None
        return logits

    def _shifted(self, window: Window) -> F32 | None:
        """The core's last logits, moved to where the window is now; positions it has not seen stay flat (zeros)."""
        if self._stale is None:
            return None
        start, logits = self._stale
        moved = np.zeros((len(window.u), logits.shape[1]), np.float32)
        kept = logits[window.start - start :][: len(window.u)]
        moved[: len(kept)] = kept
        return moved

    def _combine(
        self, core: F32 | None, private: F32 | None, public: F32 | None, window: Window | None, *, asked: bool
    ) -> EnsembleStep:
        exact, ahead = (1, 0) if window is None else (window.exact, window.ahead)

        def beyond(row: int) -> F32:
            first = exact + row * ahead
            return self._fuse(core, private, public, slice(first, first + ahead))

        fused = self._fuse(core, private, public, slice(0, exact))
        return EnsembleStep(fused=fused, core=core, private=private, core_asked=asked, ahead=beyond)

    def _fuse(self, core: F32 | None, private: F32 | None, public: F32 | None, rows: slice) -> F32:
        """The members' rows, added; a member that has none of them has no say."""
        weights = self._weights
        parts = (
            None if logits is None or len(logits) < rows.stop else logits[rows] for logits in (core, private, public)
        )
        return fuse(
            *parts,
            lam=weights.lam,
            alpha=weights.alpha,
            contrast_top_p=weights.contrast_top_p,
            normalise=weights.normalise,
        )


def _step_or_skip(core: Member, window: Window, committed: I32, *, asked: bool) -> F32 | None:
    if asked:
        return core.step(window, committed)
    core.skip(window, committed)
    return None
