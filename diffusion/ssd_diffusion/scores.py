"""Scores that stand in for likelihood (diffusion.md, section 3). None of them is an ELBO.

    S1  chain rule        -log p(y_i | context, y_<i) at the first window position, everything else pure noise
    S2  denoising         cross-entropy of the true block at noise levels from which it cannot be read off
    S3  infill            one span at u = 1, both sides visible
    S4  trajectory        mean log-probability of the final tokens over decode passes at u >= .3

S1 to S3 take an `open_scorer` that starts a fresh ensemble (or member) on the context, and score ids against it; S4
listens to a decode. Values are log-probabilities in nats; higher is better. Knows nothing about text, data sets or
statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
from ssd_kernels.combine import log_softmax
from ssd_kernels.types import F32, F64, I32, TokenSets

from ssd_diffusion.ensemble import Ensemble
from ssd_diffusion.sampler import StepEvent
from ssd_diffusion.window import Window

OpenScorer = Callable[[], AbstractContextManager[Ensemble]]

TRAJECTORY_FLOOR = 0.3
_NONE = np.zeros(0, np.int32)


def s1(open_scorer: OpenScorer, tokens: I32, *, noise_keys: Sequence[int] = (0,), block: int = 1) -> F64:
    """Chain-rule log-probability of each token; the probability is averaged over the noise keys. [len(tokens)]

    With pure noise hidden the estimate has no variance and one key is enough (SSD-2 family); the SSD-LM family wants
    several. `block` is the number of open positions beside the one that is read (their noise matters to SSD-LM only).
    """
    per_key = [_chain(open_scorer, tokens, key, block) for key in noise_keys]
    return np.asarray(np.logaddexp.reduce(per_key, axis=0) - np.log(len(per_key)))


def s1_autoregressive(open_scorer: OpenScorer, tokens: I32) -> F64:
    """Next-token log-probability of each token under the autoregressive twin. [len(tokens)]"""
    out = np.zeros(len(tokens))
    with open_scorer() as scorer:
        for i, token in enumerate(tokens):
            logp = scorer.next(tokens[i - 1 : i]).fused
            out[i] = log_softmax(logp)[0, token]
    return out


def s2(open_scorer: OpenScorer, tokens: I32, *, levels: Sequence[float], noise_keys: Sequence[int]) -> F64:
    """Denoising log-probability of a block at each (level, key), all positions at that level. [levels, keys, tokens]

    Args:
        tokens: the true block; at most the members' largest window.
        levels: noise levels, stratified by the caller, in a band where the answer cannot be read off the input
            ([.5, 1]; [.4, 1] for V >= 8,000).
        noise_keys: keys of the noise; use the same ones on both sides of a comparison.
    """
    out = np.zeros((len(levels), len(noise_keys), len(tokens)))
    with open_scorer() as scorer:
        for a, level in enumerate(levels):
            for b, key in enumerate(noise_keys):
                u = np.full(len(tokens), level, np.float32)
                w_hat = TokenSets.single(tokens) if level < 1 else TokenSets.empty(len(tokens))
                out[a, b] = _read(scorer, Window(0, 0, 0, u, w_hat, key), tokens, _NONE)
    return out


def s3(open_scorer: OpenScorer, span: I32, right: I32, *, noise_key: int = 0) -> F64:
    """Infill log-probability of each token of a span at u = 1, with the right side visible and clean. [len(span)]"""
    u = np.concatenate([np.ones(len(span)), np.zeros(len(right))]).astype(np.float32)
    w_hat = TokenSets.of([[] for _ in span] + [[int(t)] for t in right])
    with open_scorer() as scorer:
        return _read(scorer, Window(0, 0, 0, u, w_hat, noise_key), span, _NONE)


class TrajectoryScore:
    """S4: mean log-probability of the tokens that became final, over the passes at u >= .3 that estimated them.

    Feed it every event of a decode. Keeps the log-probabilities of open positions only, as float16.
    """

    def __init__(self) -> None:
        self._seen: dict[int, list[F32]] = {}
        self._per_token: list[float] = []

    def update(self, event: StepEvent) -> None:
        """Take in one pass."""
        window = event.window
        accepted = event.decision.record.accepted
        for i, position in enumerate(window.positions.tolist()):
            if window.u[i] >= TRAJECTORY_FLOOR:
                self._seen.setdefault(position, []).append(event.fused[i].astype(np.float16))
            if accepted[i] and position in self._seen:
                token = event.decision.estimate[i]
                rows = self._seen.pop(position)
                self._per_token.append(float(np.mean([row[token] for row in rows])))

    @property
    def value(self) -> float:
        """Mean over tokens in nats; NaN before the first one is final."""
        return float(np.mean(self._per_token)) if self._per_token else float("nan")


def _chain(open_scorer: OpenScorer, tokens: I32, key: int, block: int) -> F64:
    out = np.zeros(len(tokens))
    with open_scorer() as scorer:
        for i, token in enumerate(tokens):
            window = Window(i, i, 0, np.ones(block, np.float32), TokenSets.empty(block), key)
            out[i] = _read(scorer, window, np.array([token]), tokens[max(0, i - 1) : i])[0]
    return out


def _read(scorer: Ensemble, window: Window, tokens: I32, committed: I32) -> F64:
    """Log-probabilities of tokens at the first len(tokens) positions of a window."""
    logp = log_softmax(scorer.step(window, committed).fused[: len(tokens)])
    return np.asarray(logp[np.arange(len(tokens)), tokens], dtype=np.float64)
