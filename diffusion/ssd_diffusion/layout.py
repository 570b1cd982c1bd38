"""One pass of the SSD-2 family, in numpy: who reads whom, at which position, and what goes in at every position.

A pass reads [pending clean tokens | anchor | window]. The pending tokens are causal and go into the cache; the anchor
is the last clean token, once more, at u = 0; then come the B window positions. The anchor's query predicts the first
window position and each window query the one after it (diffusion.md 2b). Positions at u = 1 say nothing and are hidden
from all others. The torch side has the same rules for padded batches; tests hold one against the other.

Knows one row at a time; nothing about networks, files, slots or sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from ssd_kernels.simplex import renoise_embed
from ssd_kernels.tables import WholeTable
from ssd_kernels.types import F32, I32, I64, Bool, TokenSets

from ssd_diffusion.draft_tree import lineage
from ssd_diffusion.schedule import SCHEDULE_S, SIMPLEX_K, alpha_bar
from ssd_diffusion.window import Window


@dataclass(frozen=True, slots=True)
class PassLayout:
    """Positions and mask of one pass with Q = pending + 1 + B queries after P cached tokens.

    Attributes:
        position_ids: position of every query. [Q]
        allowed: True where a query may read a key; keys are the P cached ones, then the queries' own. [Q, P + Q]
    """

    position_ids: I64
    allowed: Bool

    @property
    def bias(self) -> F32:
        """The mask as an additive attention bias, 0 or the lowest float32. [1, 1, Q, P + Q]"""
        lowest = np.finfo(np.float32).min
        return np.where(self.allowed, np.float32(0), lowest)[None, None]


def pass_layout(cached: int, pending: int, u: F32) -> PassLayout:
    """Who may read whom in a pass.

    Args:
        cached: P, tokens whose keys and values are held already.
        pending: clean tokens that this pass computes for the cache.
        u: noise level per window position, in [0, 1]. [B]; B may be 0: a plain causal pass.
    """
    queries = pending + 1 + len(u)
    own: Bool = np.zeros((queries, queries), np.bool_)
    own[: pending + 1, : pending + 1] = np.tril(np.ones((pending + 1, pending + 1), np.bool_))
    own[pending + 1 :, : pending + 1] = True
    own[pending:, pending + 1 :] = u < 1.0
    np.fill_diagonal(own, True)
    allowed = np.concatenate([np.ones((queries, cached), np.bool_), own], axis=1)
    return PassLayout(np.arange(cached, cached + queries, dtype=np.int64), allowed)


def lookahead_layout(cached: int, pending: int, parents: I32, ahead: int) -> PassLayout:
    """Who may read whom in a pass that looks ahead: D + 1 windows at u = 1 in one, the first behind the clean text,
    window i + 1 behind draft i.

    Queries: [pending | last clean token and the first D - 1 drafts, causal | the D + 1 anchors | `ahead` open
    positions of every window, window by window]. A draft reads the clean text, the drafts on its path and itself. The
    anchor of a window is the token before it, once more at u = 0; it reads what that token reads, less the token. Open
    positions read what their anchor reads, their anchor and themselves.

    Args:
        cached: P, tokens whose keys and values are held already.
        pending: clean tokens that this pass computes for the cache.
        parents: which draft every draft stands behind, see `draft_tree`. [D]
        ahead: open positions of a window.
    """
    drafts, path = len(parents), tree_path(parents)
    causal, branch = pending + drafts, np.arange(drafts + 1)
    owner = np.concatenate([branch, np.repeat(branch, ahead)])  # window of every query behind the causal ones
    queries = causal + len(owner)
    own: Bool = np.zeros((queries, queries), np.bool_)
    own[:pending, :pending] = np.tril(np.ones((pending, pending), np.bool_))
    own[pending:, :pending] = True
    own[pending:causal, pending:causal] = path[:drafts, :drafts]
    own[causal:, pending:causal] = path[owner, :drafts] & (owner[:, None] != np.arange(drafts))
    own[causal:, causal : causal + drafts + 1] = owner[:, None] == branch
    np.fill_diagonal(own, True)
    allowed = np.concatenate([np.ones((queries, cached), np.bool_), own], axis=1)
    places = cached + pending + path.sum(axis=1) - 1
    ahead_of = (places[:, None] + 1 + np.arange(ahead)).reshape(-1)
    positions = np.concatenate([np.arange(cached, cached + pending), places[:drafts], places, ahead_of])
    return PassLayout(positions.astype(np.int64), allowed)


def joined_layout(parts: Sequence[PassLayout]) -> PassLayout:
    """Several passes as one, none reading another: the cached tokens of all, and behind them the queries of all."""
    queries = [len(part.position_ids) for part in parts]
    cached = [part.allowed.shape[1] - count for part, count in zip(parts, queries, strict=True)]
    allowed: Bool = np.zeros((sum(queries), sum(cached) + sum(queries)), np.bool_)
    row, key, own = 0, 0, sum(cached)
    for part, count, held in zip(parts, queries, cached, strict=True):
        allowed[row : row + count, key : key + held] = part.allowed[:, :held]
        allowed[row : row + count, own : own + count] = part.allowed[:, held:]
        row, key, own = row + count, key + held, own + count
    return PassLayout(np.concatenate([part.position_ids for part in parts]), allowed)


def tree_path(parents: I32) -> Bool:
    """Which of [last clean token, *drafts] lie on the path to each of them, itself included. [D + 1, D + 1]"""
    path: Bool = np.ones((len(parents) + 1, len(parents) + 1), np.bool_)
    path[0, 1:] = False
    path[1:, 1:] = lineage(parents)
    return path


@dataclass(frozen=True, eq=False)
class InputMaps:
    """The maps from tokens, distributions and noise levels to input embeddings.

    Attributes:
        table: input embeddings E of the true vocabulary; may be memory-mapped. [V, H]
        mean: mean of E over the vocabulary. [H]
        w_diff: M. [H, H]
        w_time: slope of W_time. [H]
        w_time_bias: W_time(0). [H]
    """

    table: F32
    mean: F32
    w_diff: F32
    w_time: F32
    w_time_bias: F32

    @cached_property
    def whole(self) -> WholeTable:
        """The table that distributions are embedded by; made when the first one is."""
        return WholeTable(self.table)

    def embed(self, tokens: I32) -> F32:
        """Clean tokens of the context, as the base embeds them. [n, H]"""
        return np.asarray(self.table[tokens], dtype=np.float32)

    def embed_clean(self, tokens: I32) -> F32:
        """The anchor and accepted positions: E[token] + W_time(0). [n, H]"""
        return self.embed(tokens) + self.w_time_bias

    def means(self, block: int) -> F32:
        """A fresh mean of E at every position: the self-conditioning where there was no pass before. [B, H]"""
        return np.broadcast_to(self.mean, (block, len(self.mean))).astype(np.float32)

    def embed_ahead(self, last: int, window: Window) -> F32:
        """Inputs of a pass that looks ahead behind its pending tokens, in the order of `lookahead_layout`. [.., H]

        Args:
            last: the last clean token.
            window: the window; its drafts are the first of `w_hat`.
        """
        tokens = np.array([last, *window.w_hat.ids], np.int32)
        noise = self.w_diff @ self.mean + self.w_time + self.w_time_bias
        open_rows = np.broadcast_to(noise, (len(tokens) * window.ahead, len(noise)))
        return np.concatenate([self.embed(tokens[:-1]), self.embed_clean(tokens), open_rows]).astype(np.float32)

    def embed_window(
        self, window: Window, conditioning: F32, *, simplex_k: float = SIMPLEX_K, schedule_s: float = SCHEDULE_S
    ) -> F32:
        """Input embeddings of a window, each position by its own noise level. [B, H]

        u = 0: E[token] + W_time(0). 0 < u < 1: M((softmax(x_t) E + c) / 2) + W_time(u), c the self-conditioning.
        u = 1: M(mean of E) + W_time(1), without noise.

        Args:
            window: the window.
            conditioning: softmax(previous logits) E per position, the mean of E where there are none. [B, H]
            simplex_k: K of the simplex.
            schedule_s: s of the cosine schedule.
        """
        u = window.u
        mixed = np.broadcast_to(self.mean, conditioning.shape).copy()
        partly = np.flatnonzero((u > 0.0) & (u < 1.0))
        if len(partly):
            noised = embed_noised(window, partly, self.whole, simplex_k=simplex_k, schedule_s=schedule_s)
            mixed[partly] = (noised + conditioning[partly]) / 2
        out: F32 = np.asarray(mixed @ self.w_diff.T + u[:, None] * self.w_time + self.w_time_bias, dtype=np.float32)
        clean = np.flatnonzero(u == 0.0)
        out[clean] = self.embed_clean(window.w_hat.ids[window.w_hat.offsets[clean]])
        return out


def embed_noised(window: Window, partly: I64, table: F32 | WholeTable, *, simplex_k: float, schedule_s: float) -> F32:
    """softmax(x_t) E at some positions of a window. [n, H]

    Args:
        window: the window.
        partly: which of its positions, 0 .. B - 1. [n]
        table: input embeddings E, plain or in whole numbers. [V, H]
        simplex_k: K of the simplex.
        schedule_s: s of the cosine schedule.
    """
    return renoise_embed(
        TokenSets.of([window.w_hat.row(int(i)).tolist() for i in partly]),
        alpha_bar(window.u[partly], schedule_s).astype(np.float32),
        table,
        noise_key=window.noise_key,
        positions=window.positions[partly],
        step=window.step,
        block=window.block,
        k=simplex_k,
    )
