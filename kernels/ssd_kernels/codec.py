"""Logits as bytes: dense float32 and float16, and top-k with residual mass.

A top-k row is self-contained and byte-aligned, little-endian, bits from the least significant upwards:

    u16 k | u8 value bits n | f32 residual r | k low id bits of l each | high id bits in unary | k values of n bits

The head is the k most probable tokens, in id order. Ids are Elias-Fano coded: l = floor(log2(V / k)) low bits as they
are, and bit (id >> l) + i set for entry i among k + ((V - 1) >> l) + 1. A value q stands for a log-probability q steps
of VALUE_STEP nats below the row's largest; the decoder scales the head to the mass 1 - r and spreads r over all other
tokens in proportion to a unigram that both sides hold (uniform where they hold none).

Knows nothing about messages, sessions or models.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ssd_kernels.backend import BackendName, resolve
from ssd_kernels.combine import expert_term, log_softmax, log_softmax_f64
from ssd_kernels.errors import CodecError, InvalidInput
from ssd_kernels.types import F32, F64, I64, Bool

CodecKindName: TypeAlias = Literal["dense-f32", "dense-f16", "top-k"]
KINDS: tuple[CodecKindName, ...] = ("dense-f32", "dense-f16", "top-k")
DEFAULT_K = 1024
DEFAULT_RESIDUAL = 0.01
VALUE_STEP = 1.0 / 32.0
TAIL_FLOOR = 1e-7
"""Least mass of the tail: what was not sent is unlikely, never impossible."""

_HEADER = struct.Struct("<HBf")
_MAX_K = 65_535
_MAX_VALUE_BITS = 16
_U8: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class CodecSpec:
    """A codec with its settings.

    Attributes:
        kind: "dense-f32", "dense-f16" or "top-k".
        k: top-k: most entries of a row.
        residual: top-k: a row stops at the smallest number of entries that leaves at most this mass.
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
        value_step: width of a quantisation step of the head in nats; 0 for dense.
    """

    logp: F32
    head: Bool
    residual: F32
    value_step: float


def encode(logits: F32, spec: CodecSpec, *, tail_logp: F32 | None = None, backend: BackendName | None = None) -> bytes:
    """Rows of logits as bytes.

    Args:
        logits: finite logits or log-probabilities, [B, V].
        spec: codec and settings.
        tail_logp: the shared unigram; the encoder does not need it (the decoder does) and checks its shape only.
        backend: numpy, numba or None.

    Raises:
        CodecError: logits that are not finite, not [B, V], or do not fit into float16.
    """
    logits = np.ascontiguousarray(logits, dtype=np.float32)
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise CodecError(f"Logits to encode must have the shape [B, V], not {logits.shape}.")
    if not np.isfinite(logits).all():
        raise CodecError("The logits hold NaN or infinite values and cannot be sent: check the model's weights.")
    if tail_logp is not None and np.shape(tail_logp) != (logits.shape[1],):
        raise CodecError(f"The tail's unigram must hold {logits.shape[1]} values, not {np.shape(tail_logp)}.")
    if spec.kind == "dense-f32":
        return logits.astype("<f4").tobytes()
    if spec.kind == "dense-f16":
        if float(np.abs(logits).max(initial=0.0)) > 65_504.0:
            raise CodecError("The logits are too large for float16: use the codec dense-f32.")
        return logits.astype("<f2").tobytes()
    logp = log_softmax(logits, backend=backend)
    return b"".join(_encode_row(row, spec) for row in logp)


def _head(logp: F32, spec: CodecSpec) -> tuple[I64, float]:
    """Ids of the head (ascending) and the mass left, for one row of log-probabilities."""
    most = min(spec.k, len(logp))
    ids = np.arange(len(logp)) if most == len(logp) else np.argpartition(-logp, most - 1)[:most]
    if most < len(logp):  # ties at the edge go to the lower id
        edge = logp[ids].min()
        above, level = np.flatnonzero(logp > edge), np.flatnonzero(logp == edge)
        ids = np.concatenate([above, level[: most - len(above)]])
    ids = ids[np.lexsort((ids, -logp[ids]))]
    mass = np.cumsum(np.exp(logp[ids].astype(np.float64)))
    enough = np.flatnonzero(1.0 - mass <= spec.residual)
    k = int(enough[0]) + 1 if len(enough) else most
    left = 0.0 if k == len(logp) else min(max(1.0 - float(mass[k - 1]), TAIL_FLOOR), 1.0 - 1e-6)
    return np.sort(ids[:k]).astype(np.int64), left


def _bits(numbers: I64, width: int) -> _U8:
    """Numbers as `width` bits each, least significant first, flat."""
    return ((numbers[:, None] >> np.arange(width)) & 1).astype(np.uint8).ravel()


def _numbers(bits: _U8, width: int) -> I64:
    """The inverse of `_bits`."""
    return np.asarray(bits.reshape(-1, width).astype(np.int64) @ (1 << np.arange(width, dtype=np.int64)))


def _low_bits(vocab: int, k: int) -> int:
    return max((vocab // k).bit_length() - 1, 0)


def _encode_row(logp: F32, spec: CodecSpec) -> bytes:
    vocab = len(logp)
    ids, residual = _head(logp, spec)
    k, low = len(ids), _low_bits(vocab, len(ids))
    values = logp[ids].astype(np.float64)
    q = np.rint((values.max() - values) / VALUE_STEP).clip(0, (1 << _MAX_VALUE_BITS) - 1).astype(np.int64)
    width = int(q.max()).bit_length()
    high = np.zeros(k + ((vocab - 1) >> low) + 1, np.uint8)
    high[(ids >> low) + np.arange(k)] = 1
    payload = np.concatenate([_bits(ids & ((1 << low) - 1), low), high, _bits(q, width)])
    return _HEADER.pack(k, width, residual) + np.packbits(payload, bitorder="little").tobytes()


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
    tail = np.zeros(vocab, np.float64) if tail_logp is None else np.asarray(tail_logp, dtype=np.float64)
    if tail.shape != (vocab,) or not np.isfinite(tail).all():
        raise CodecError(f"The tail's unigram must hold {vocab} finite values.")
    tail = np.exp(tail - tail.max())
    logp = np.empty((rows, vocab), np.float32)
    head = np.zeros((rows, vocab), np.bool_)
    residual = np.empty(rows, np.float32)
    at = 0
    for i in range(rows):
        ids, q, r, at = _decode_row(data, at, i, vocab, spec)
        head[i, ids] = True
        residual[i] = r
        logp[i] = _spread(ids, q, r, tail)
    if at != len(data):
        raise CodecError(f"The encoded logits are {len(data) - at} bytes too long for {rows} rows.")
    return Decoded(logp=logp, head=head, residual=residual, value_step=VALUE_STEP)


def _decode_dense(data: bytes, rows: int, vocab: int, spec: CodecSpec) -> Decoded:
    dtype = np.dtype("<f4" if spec.kind == "dense-f32" else "<f2")
    want = rows * vocab * dtype.itemsize
    if len(data) != want:
        raise CodecError(f"The encoded logits should be {want} bytes long for [{rows}, {vocab}], but are {len(data)}.")
    logits = np.frombuffer(data, dtype).astype(np.float32).reshape(rows, vocab)
    if not np.isfinite(logits).all():
        raise CodecError("The received logits hold NaN or infinite values.")
    return Decoded(
        logp=logits, head=np.ones((rows, vocab), np.bool_), residual=np.zeros(rows, np.float32), value_step=0.0
    )


def _decode_row(data: bytes, at: int, row: int, vocab: int, spec: CodecSpec) -> tuple[I64, I64, float, int]:
    """Ids, values, residual and the place after the row that starts at byte `at`."""
    if len(data) < at + _HEADER.size:
        raise CodecError(f"The encoded logits end before row {row}.")
    k, width, residual = _HEADER.unpack_from(data, at)
    at += _HEADER.size
    if not 1 <= k <= min(vocab, spec.k):
        raise CodecError(
            f"Row {row} of the encoded logits claims {k} entries; from 1 to {min(vocab, spec.k)} are allowed."
        )
    if width > _MAX_VALUE_BITS:
        raise CodecError(
            f"Row {row} of the encoded logits claims values of {width} bits; {_MAX_VALUE_BITS} are allowed."
        )
    if not 0.0 <= residual < 1.0:
        raise CodecError(f"Row {row} of the encoded logits has a residual mass outside [0, 1).")
    low = _low_bits(vocab, k)
    low_end = k * low
    high_end = low_end + k + ((vocab - 1) >> low) + 1
    end = high_end + k * width
    size = (end + 7) // 8
    if len(data) < at + size:
        raise CodecError(f"The encoded logits end within row {row}.")
    bits = np.unpackbits(np.frombuffer(data, np.uint8, size, at), bitorder="little")
    marks = np.flatnonzero(bits[low_end:high_end])
    if len(marks) != k or bits[end:].any():
        raise CodecError(f"The ids of row {row} of the encoded logits do not fit its number of entries.")
    ids = (marks - np.arange(k)) << low
    if low:
        ids |= _numbers(bits[:low_end], low)
    if ids[-1] >= vocab or (np.diff(ids) <= 0).any():
        raise CodecError(f"The ids of row {row} of the encoded logits are out of range or not ascending.")
    q = _numbers(bits[high_end:end], width) if width else np.zeros(k, np.int64)
    return ids, q, float(residual), at + size


def _spread(ids: I64, q: I64, residual: float, tail: F64) -> F64:
    """One row of log-probabilities from head values and the tail's weights. [V]"""
    weights = tail.copy()
    weights[ids] = 0.0
    rest = weights.sum()
    residual = max(residual, TAIL_FLOOR) if rest > 0.0 else 0.0
    with np.errstate(divide="ignore"):
        logp = np.log(weights * (residual / rest)) if rest > 0.0 else np.empty_like(weights)
    logp[ids] = log_softmax_f64(q * -VALUE_STEP) + np.log1p(-residual)
    return logp


def total_variation_bound(
    core: Decoded,
    private: F32 | None,
    public: F32 | None,
    *,
    lam: float,
    alpha: float,
    contrast_top_p: float = 0.95,
    backend: BackendName | None = None,
) -> F32:
    """How far the fused distribution can lie from the one with the core's exact row, in total variation.

    With g the expert's term of `combine.fuse`, S the tail and h the unnormalised fused mass of the head:
    U = r^(1-lam) (sum over S of exp(g))^lam bounds the fused mass of any tail of mass r (Hölder), so TV <= U / (h + U);
    the head's rounding adds at most tanh((1 - lam) step / 4).

    Args:
        core: the received rows.
        private: the expert with private context, log-probabilities or logits [B, V]; None: the core alone.
        public: the expert without private context [B, V], or None.
        lam: the expert's share in [0, 1].
        alpha: weight of the contrastive term, >= 0.
        contrast_top_p: as in `combine.fuse`.
        backend: numpy, numba or None.

    Returns:
        A bound in [0, 1] for each row, [B].

    Raises:
        InvalidInput: lam or alpha out of range.
    """
    if not (0.0 <= lam <= 1.0 and alpha >= 0.0):
        raise InvalidInput(f"lambda must lie from 0 to 1 and alpha from 0 upwards, not {lam} and {alpha}.")
    share = 0.0 if private is None else lam
    rounding = np.tanh((1.0 - share) * core.value_step / 4.0)
    if private is None or share == 0.0:
        return np.asarray((core.residual + rounding).clip(0.0, 1.0), dtype=np.float32)
    if share == 1.0:
        return np.zeros(len(core.logp), np.float32)
    own = log_softmax(private, backend=backend)
    other = None if public is None else log_softmax(public, backend=backend)
    g = expert_term(own, other, alpha=alpha, contrast_top_p=contrast_top_p, backend=backend)
    g -= g.max(axis=1, keepdims=True)
    in_tail = np.where(core.head, 0.0, np.exp(g)).sum(axis=1)
    r = np.where(core.head.all(axis=1), 0.0, np.maximum(core.residual, TAIL_FLOOR)).astype(np.float64)
    upper = r ** (1.0 - share) * in_tail**share
    head = np.where(core.head, np.exp((1.0 - share) * core.logp.astype(np.float64) + share * g), 0.0).sum(axis=1)
    return np.asarray((upper / (head + upper) + rounding).clip(0.0, 1.0), dtype=np.float32)
