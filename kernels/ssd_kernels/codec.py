"""Logits as bytes: dense float32 and float16, and top-k with residual mass.

Top-k sends the most probable tokens of a row and the mass of all others (`topk` has the bits and the rules). The
decoder spreads that mass over the others in proportion to unigram^TAIL_POWER, the unigram being one that both sides
hold (uniform where they hold none); `tail.reshape_tail` does better where the receiver runs a member of its own.

In a window that slides, the leftmost position is decided next and the later ones come back in a later pass: rows after
the leading ones keep k / LATER_PART entries. In a pass that looks ahead they keep what the caller says they are worth.

Knows nothing about messages, sessions or models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from ssd_kernels import topk
from ssd_kernels.backend import BackendName, resolve
from ssd_kernels.combine import log_softmax, log_softmax_f64
from ssd_kernels.errors import CodecError, InvalidInput
from ssd_kernels.threads import over_rows
from ssd_kernels.types import F32, F64, I32, Bool

CodecKindName: TypeAlias = Literal["dense-f32", "dense-f16", "top-k"]
KINDS: tuple[CodecKindName, ...] = ("dense-f32", "dense-f16", "top-k")
DEFAULT_K = 2048
DEFAULT_RESIDUAL = 1e-4
LATER_PART = 4
TAIL_POWER = 0.5
_MAX_K = 65_535


@dataclass(frozen=True, slots=True)
class CodecSpec:
    """A codec with its settings.

    Attributes:
        kind: "dense-f32", "dense-f16" or "top-k".
        k: top-k: most entries of a leading row.
        residual: top-k: a row stops early once at most this mass is left; 0 keeps exactly k entries.
    """

    kind: CodecKindName = "top-k"
    k: int = DEFAULT_K
    residual: float = DEFAULT_RESIDUAL

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidInput(f'No codec is called "{self.kind}": choose {", ".join(KINDS)}.')
        if not 1 <= self.k <= _MAX_K:
            raise InvalidInput(f"A top-k codec keeps from 1 to {_MAX_K} entries of a row, not {self.k}.")
        if not 0.0 <= self.residual < 1.0:
            raise InvalidInput(f"The residual mass of a top-k codec must lie in [0, 1), not {self.residual}.")

    @staticmethod
    def parse(text: str) -> CodecSpec:
        """From text: "dense-f32", "dense-f16", "top-k", "top-k:K" or "top-k:K:RESIDUAL".

        Raises:
            InvalidInput: anything else.
        """
        kind, *settings = text.strip().lower().split(":")
        if kind not in KINDS or len(settings) > (2 if kind == "top-k" else 0):
            raise InvalidInput(
                f'The codec "{text}" is unknown: write dense-f32, dense-f16, top-k, top-k:K or top-k:K:R.'
            )
        try:
            k = int(settings[0]) if settings else DEFAULT_K
            residual = float(settings[1]) if len(settings) > 1 else DEFAULT_RESIDUAL
        except ValueError:
            raise InvalidInput(
                f'The codec "{text}" needs numbers: top-k:K or top-k:K:R, as in top-k:256:0.01.'
            ) from None
        return CodecSpec(kind=kind, k=k, residual=residual)

    def __str__(self) -> str:
        """The text that `parse` reads."""
        return f"top-k:{self.k}:{self.residual:g}" if self.kind == "top-k" else self.kind


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """Rows as they were received.

    Attributes:
        logp: log-probabilities (top-k) or the raw values (dense), [B, V].
        head: tokens that were sent one by one, [B, V]; all of them for dense.
        residual: mass of the tail, [B].
        value_step: width of the head's quantisation steps in nats, [B, V]; 0 in the tail and for dense.
    """

    logp: F32
    head: Bool
    residual: F32
    value_step: F32


def encode(
    logits: F32,
    spec: CodecSpec,
    *,
    leading: int | None = None,
    wider: int = 0,
    later: I32 | None = None,
    normalised: bool = False,
    backend: BackendName | None = None,
) -> bytes:
    """Rows of logits as bytes.

    Args:
        logits: finite logits or log-probabilities, [B, V].
        spec: codec and settings.
        leading: top-k: rows from this one on keep at most k / LATER_PART entries, or `later`; None: all rows lead.
        wider: top-k: leading rows keep exactly so many entries (at most V) whatever the settings say; 0: they do not.
        later: top-k: most entries of every row, which only those after the leading ones are held to. [B]
        normalised: the rows are what `log_softmax` gives; top-k takes them as they are.
        backend: numpy, numba or None.

    Raises:
        CodecError: logits that are not finite, not [B, V], or do not fit into float16.
    """
    logits = np.ascontiguousarray(logits, dtype=np.float32)
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise CodecError(f"Logits to encode must have the shape [B, V], not {logits.shape}.")
    if not np.isfinite(logits).all():
        raise CodecError("The logits hold NaN or infinite values and cannot be sent: check the model's weights.")
    if spec.kind == "dense-f32":
        return logits.astype("<f4").tobytes()
    if spec.kind == "dense-f16":
        if float(np.abs(logits).max(initial=0.0)) > 65_504.0:
            raise CodecError("The logits are too large for float16: use the codec dense-f32.")
        return logits.astype("<f2").tobytes()
    logp = logits if normalised else log_softmax(logits, backend=backend)
    lead = len(logp) if leading is None else leading
    first = (wider, 0.0) if wider else (spec.k, spec.residual)
    most = np.full(len(logp), spec.k // LATER_PART) if later is None else later
    rest = [(min(spec.k, max(1, int(k))), spec.residual) for k in most]
    held = [first if i < lead else rest[i] for i in range(len(logp))]
    if resolve(backend) == "numba":
        return _encode_numba(logp, held)
    return b"".join(topk.encode_row(row, *settings) for row, settings in zip(logp, held, strict=True))


def _encode_numba(logp: F32, held: list[tuple[int, float]]) -> bytes:
    from ssd_kernels import _numba_topk

    most, enough = np.array([k for k, _ in held], np.int64), np.array([r for _, r in held], np.float64)
    out = np.empty((len(logp), topk.room(logp.shape[1], int(most.max(initial=1)))), np.uint8)
    sizes = np.empty(len(logp), np.int64)
    over_rows(len(logp), lambda a, b: _numba_topk.encode_rows(a, b, logp, most, enough, out, sizes), least=8)
    return b"".join(row[:size].tobytes() for row, size in zip(out, sizes, strict=True))


def decode(
    data: bytes,
    *,
    rows: int,
    vocab: int,
    spec: CodecSpec,
    tail_logp: F32 | None = None,
    backend: BackendName | None = None,
) -> F32:
    """The rows that `encode` wrote: log-probabilities for top-k, the raw values for dense.

    Args:
        data: what `encode` returned.
        rows: B.
        vocab: V.
        spec: the codec; of its settings only `k` matters here, as a limit.
        tail_logp: finite log-probabilities of the shared unigram [V], any base-e offset; None: uniform.
        backend: accepted for symmetry; every backend gives the same.

    Returns:
        [B, V].

    Raises:
        CodecError: bytes that `encode` cannot have written for these rows.
    """
    return decode_full(data, rows=rows, vocab=vocab, spec=spec, tail_logp=tail_logp, backend=backend).logp


def decode_full(
    data: bytes,
    *,
    rows: int,
    vocab: int,
    spec: CodecSpec,
    tail_logp: F32 | None = None,
    backend: BackendName | None = None,
) -> Decoded:
    """As `decode`, with the head set and the residual mass that `total_variation_bound` needs."""
    resolve(backend)
    if rows < 0 or vocab < 1:
        raise CodecError(f"There are no rows of the shape [{rows}, {vocab}].")
    if spec.kind != "top-k":
        return _decode_dense(data, rows, vocab, spec)
    tail = _tail_weights(tail_logp, vocab)
    logp = np.empty((rows, vocab), np.float32)
    head = np.zeros((rows, vocab), np.bool_)
    residual, value_step = np.empty(rows, np.float32), np.zeros((rows, vocab), np.float32)
    at = 0
    for i in range(rows):
        row = topk.decode_row(data, at, i, vocab, spec.k)
        head[i, row.ids], value_step[i, row.ids] = True, row.step
        logp[i], residual[i], at = _spread(row, tail), row.residual, row.end
    if at != len(data):
        raise CodecError(f"The encoded logits are {len(data) - at} bytes too long for {rows} rows.")
    return Decoded(logp=logp, head=head, residual=residual, value_step=value_step)


def _tail_weights(tail_logp: F32 | None, vocab: int) -> F64:
    """unigram^TAIL_POWER, largest 1. [V]"""
    if tail_logp is None:
        return np.ones(vocab, np.float64)
    tail = check_unigram(tail_logp, vocab)
    return np.asarray(np.exp(np.maximum(TAIL_POWER * (tail - tail.max()), -300.0)))


def check_unigram(tail_logp: F32, vocab: int) -> F64:
    """A shared unigram in float64. [V] Raises CodecError."""
    tail = np.asarray(tail_logp, dtype=np.float64)
    if tail.shape != (vocab,) or not np.isfinite(tail).all():
        raise CodecError(f"The tail's unigram must hold {vocab} finite values.")
    return tail


def _decode_dense(data: bytes, rows: int, vocab: int, spec: CodecSpec) -> Decoded:
    dtype = np.dtype("<f4" if spec.kind == "dense-f32" else "<f2")
    want = rows * vocab * dtype.itemsize
    if len(data) != want:
        raise CodecError(f"The encoded logits should be {want} bytes long for [{rows}, {vocab}], but are {len(data)}.")
    logits = np.frombuffer(data, dtype).astype(np.float32).reshape(rows, vocab)
    if not np.isfinite(logits).all():
        raise CodecError("The received logits hold NaN or infinite values.")
    everything, none = np.ones((rows, vocab), np.bool_), np.zeros((rows, vocab), np.float32)
    return Decoded(logp=logits, head=everything, residual=np.zeros(rows, np.float32), value_step=none)


def _spread(row: topk.Row, tail: F64) -> F64:
    """One row of log-probabilities from its head and the tail's weights. [V]"""
    weights = tail.copy()
    weights[row.ids] = 0.0
    rest = weights.sum()
    weights[row.ids] = 1.0
    logp = np.log(weights) + (np.log(row.residual) - np.log(rest) if row.residual > 0.0 else 0.0)
    logp[row.ids] = log_softmax_f64(row.logp) + np.log1p(-row.residual)
    return np.asarray(logp)
