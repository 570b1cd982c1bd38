"""Logits as bytes: dense float32 and float16, and top-k with residual mass.

A top-k row is self-contained and byte-aligned, little-endian, bits from the least significant upwards:

    u16 k | u8 step exponent e << 4 | Rice parameter b | f32 residual mass r | u16 zeros z
    k low id bits of l each | high id bits in unary | k low value bits of b each | high value bits in unary

The head is k of the most probable tokens, in id order. Ids are Elias-Fano coded: l = floor(log2(V / k)) low bits as
they are, and bit (id >> l) + i set for entry i among k + ((V - 1) >> l) + 1. A value u stands for a log-probability
u steps of 2^-e nats above the row's smallest, Rice coded: b low bits, and u >> b zeros before a one (z zeros in all).
The residual mass r belongs to all other tokens. The decoder scales the head to the mass 1 - r and spreads r over the
tail in proportion to unigram^TAIL_POWER, the unigram being one that both sides hold (uniform where they hold none).

A row's head ends at spec.k entries, or once at most spec.residual is left, or, after spec.k / MIN_ENTRIES_PART entries,
where the next token's probability is below FLOOR_SHARE / spec.k. That last rule spends the bytes on the rows that gain
most; at equal bytes it leaves less divergence than a limit on the residual mass. The least number of entries is for
confident rows: the other member may be sure of a token that this one gives little. With spec.residual = 0 exactly k
entries are kept.

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
DEFAULT_K = 2048
DEFAULT_RESIDUAL = 1e-6
FLOOR_SHARE = 0.06
MIN_ENTRIES_PART = 16
TAIL_POWER = 0.5
LOCAL_POWERS = (0.25, 0.5)
"""Powers of the unigram and of a local member's distribution in a tail shaped by both (`reshape_tail`)."""
TAIL_FLOOR = 1e-7
"""Least mass of the tail: what was not sent is unlikely, never impossible."""

_HEADER = struct.Struct("<HBfH")
_MAX_K = 65_535
_U8: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class CodecSpec:
    """A codec with its settings.

    Attributes:
        kind: "dense-f32", "dense-f16" or "top-k".
        k: top-k: most entries of a row.
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
        value_step: width of a quantisation step of the head in nats, [B]; 0 for dense.
    """

    logp: F32
    head: Bool
    residual: F32
    value_step: F32


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
    ids = np.arange(len(logp))
    if most < len(logp):  # ties at the edge go to the lower id
        edge = np.partition(logp, len(logp) - most)[len(logp) - most]
        above, level = np.flatnonzero(logp > edge), np.flatnonzero(logp == edge)
        ids = np.concatenate([above, level[: most - len(above)]])
    ids = ids[np.lexsort((ids, -logp[ids]))]
    p = np.exp(logp[ids].astype(np.float64))
    left = 1.0 - np.cumsum(p)
    k = most
    if spec.residual > 0.0:
        faint = np.append(p[1:], 0.0) < FLOOR_SHARE / spec.k
        faint[: max(spec.k // MIN_ENTRIES_PART - 1, 0)] = False
        enough = np.flatnonzero((left <= spec.residual) | faint)
        k = int(enough[0]) + 1 if len(enough) else most
    tail = 0.0 if k == len(logp) else min(max(float(left[k - 1]), TAIL_FLOOR), 1.0 - 1e-6)
    return np.sort(ids[:k]).astype(np.int64), tail


def _bits(numbers: I64, width: int) -> _U8:
    """Numbers as `width` bits each, least significant first, flat."""
    return ((numbers[:, None] >> np.arange(width)) & 1).astype(np.uint8).ravel()


def _numbers(bits: _U8, width: int, count: int) -> I64:
    """The inverse of `_bits`. [count]"""
    return np.asarray(bits.reshape(count, width).astype(np.int64) @ (1 << np.arange(width, dtype=np.int64)))


def _low_bits(vocab: int, k: int) -> int:
    return max((vocab // k).bit_length() - 1, 0)


def _step_exponent(k: int) -> int:
    """Finer steps where they cost little: 1/16 nat for long rows, down to 1/256 nat for short ones."""
    return 4 if k > 512 else 5 if k > 128 else 6 if k > 32 else 8


def _rice(u: I64) -> tuple[int, int]:
    """The parameter that writes the values in the fewest bits, and the zeros it needs."""
    zeros = [int((u >> b).sum()) for b in range(16)]
    sizes = [len(u) * b + z if z < 1 << 16 else 1 << 62 for b, z in enumerate(zeros)]
    best = int(np.argmin(sizes))
    return best, zeros[best]


def _unary(gaps: I64) -> _U8:
    """Each gap as that many zeros and a one."""
    bits = np.zeros(int(gaps.sum()) + len(gaps), np.uint8)
    bits[np.cumsum(gaps) + np.arange(len(gaps))] = 1
    return bits


def _encode_row(logp: F32, spec: CodecSpec) -> bytes:
    vocab = len(logp)
    ids, residual = _head(logp, spec)
    k, low, exponent = len(ids), _low_bits(vocab, len(ids)), _step_exponent(len(ids))
    values = logp[ids].astype(np.float64)
    u = np.rint((values - values.min()) * 2.0**exponent).astype(np.int64)
    rice, zeros = _rice(u)
    high = np.zeros(k + ((vocab - 1) >> low) + 1, np.uint8)
    high[(ids >> low) + np.arange(k)] = 1
    payload = [_bits(ids & ((1 << low) - 1), low), high, _bits(u & ((1 << rice) - 1), rice), _unary(u >> rice)]
    header = _HEADER.pack(k, exponent << 4 | rice, residual, zeros)
    return header + np.packbits(np.concatenate(payload), bitorder="little").tobytes()


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
    residual, value_step = np.empty(rows, np.float32), np.empty(rows, np.float32)
    at = 0
    for i in range(rows):
        ids, values, residual[i], value_step[i], at = _decode_row(data, at, i, vocab, spec)
        head[i, ids] = True
        logp[i] = _spread(ids, values, float(residual[i]), tail)
    if at != len(data):
        raise CodecError(f"The encoded logits are {len(data) - at} bytes too long for {rows} rows.")
    return Decoded(logp=logp, head=head, residual=residual, value_step=value_step)


def _tail_weights(tail_logp: F32 | None, vocab: int) -> F64:
    """unigram^TAIL_POWER, largest 1. [V]"""
    if tail_logp is None:
        return np.ones(vocab, np.float64)
    tail = _unigram(tail_logp, vocab)
    return np.asarray(np.exp(np.maximum(TAIL_POWER * (tail - tail.max()), -300.0)))


def _unigram(tail_logp: F32, vocab: int) -> F64:
    tail = np.asarray(tail_logp, dtype=np.float64)
    if tail.shape != (vocab,) or not np.isfinite(tail).all():
        raise CodecError(f"The tail's unigram must hold {vocab} finite values.")
    return tail


def reshape_tail(seen: Decoded, local: F32, *, tail_logp: F32 | None = None) -> Decoded:
    """The received rows with their tail mass spread after a member that the receiver runs itself.

    The head and the residual mass stay as they are, so `total_variation_bound` holds for either shape. A tail in
    proportion to unigram^.25 local^.5 stands nearer to the sender's than the unigram alone, and costs no byte.

    Args:
        seen: top-k rows of `decode_full`.
        local: logits or log-probabilities of the local member for the same positions, [B, V]; -inf is allowed.
        tail_logp: the shared unigram [V]; None: the local member alone.

    Raises:
        CodecError: shapes that differ, or local rows with NaN.
    """
    if np.shape(local) != seen.logp.shape or np.isnan(local).any():
        raise CodecError(f"The local rows must hold numbers in the shape {seen.logp.shape}, not {np.shape(local)}.")
    vocab = seen.logp.shape[1]
    common = 0.0 if tail_logp is None else LOCAL_POWERS[0] * _unigram(tail_logp, vocab)
    logp = seen.logp.copy()
    for i in np.flatnonzero(~seen.head.all(axis=1)):
        tail = ~seen.head[i]
        shape = (common + LOCAL_POWERS[1] * np.asarray(local[i], dtype=np.float64))[tail]
        shape = np.maximum(shape, shape.max() - 60.0) if np.isfinite(shape.max()) else np.zeros(len(shape))
        logp[i, tail] = log_softmax_f64(shape) + np.log(float(seen.residual[i]))
    return Decoded(logp=logp, head=seen.head, residual=seen.residual, value_step=seen.value_step)


def _decode_dense(data: bytes, rows: int, vocab: int, spec: CodecSpec) -> Decoded:
    dtype = np.dtype("<f4" if spec.kind == "dense-f32" else "<f2")
    want = rows * vocab * dtype.itemsize
    if len(data) != want:
        raise CodecError(f"The encoded logits should be {want} bytes long for [{rows}, {vocab}], but are {len(data)}.")
    logits = np.frombuffer(data, dtype).astype(np.float32).reshape(rows, vocab)
    if not np.isfinite(logits).all():
        raise CodecError("The received logits hold NaN or infinite values.")
    none = np.zeros(rows, np.float32)
    return Decoded(logp=logits, head=np.ones((rows, vocab), np.bool_), residual=none, value_step=none)


def _decode_row(data: bytes, at: int, row: int, vocab: int, spec: CodecSpec) -> tuple[I64, F64, float, float, int]:
    """Ids, values in nats, residual, step, and the place after the row that starts at byte `at`."""
    if len(data) < at + _HEADER.size:
        raise CodecError(f"The encoded logits end before row {row}.")
    k, meta, residual, zeros = _HEADER.unpack_from(data, at)
    at += _HEADER.size
    if not 1 <= k <= min(vocab, spec.k):
        raise CodecError(
            f"Row {row} of the encoded logits has {k} entries; from 1 to {min(vocab, spec.k)} are allowed."
        )
    if not (residual == 0.0 if k == vocab else 0.0 < residual < 1.0):
        raise CodecError(f"Row {row} of the encoded logits has a residual mass that its {k} entries do not allow.")
    low, rice, step = _low_bits(vocab, k), meta & 15, 2.0 ** -(meta >> 4)
    ends = np.cumsum([k * low, k + ((vocab - 1) >> low) + 1, k * rice, k + zeros])
    size = (int(ends[-1]) + 7) // 8
    if len(data) < at + size:
        raise CodecError(f"The encoded logits end within row {row}.")
    bits = np.unpackbits(np.frombuffer(data, np.uint8, size, at), bitorder="little")
    low_ids, high_ids, low_values, high_values, padding = np.split(bits, ends)
    if high_ids.sum() != k or high_values.sum() != k or not high_values[-1] or padding.any():
        raise CodecError(f"Row {row} of the encoded logits does not hold the {k} entries that it claims.")
    ids = (np.flatnonzero(high_ids) - np.arange(k)) << low | _numbers(low_ids, low, k)
    if ids[-1] >= vocab or (np.diff(ids) <= 0).any():
        raise CodecError(f"The ids of row {row} of the encoded logits are out of range or not ascending.")
    gaps = np.diff(np.flatnonzero(high_values) - np.arange(k), prepend=0)
    return ids, (gaps << rice | _numbers(low_values, rice, k)) * step, residual, step, at + size


def _spread(ids: I64, values: F64, residual: float, tail: F64) -> F64:
    """One row of log-probabilities from head values and the tail's weights. [V]"""
    weights = tail.copy()
    weights[ids] = 0.0
    rest = weights.sum()
    weights[ids] = 1.0
    logp = np.log(weights) + (np.log(residual) - np.log(rest) if residual > 0.0 else 0.0)
    logp[ids] = log_softmax_f64(values) + np.log1p(-residual)
    return np.asarray(logp)


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
