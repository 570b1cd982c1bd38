"""The core's logits as they arrive: decoded, and held against what the codec left out.

What a sparse codec left out is spread after the expert's own rows, which stand nearer than a fixed shape. How far the
fused distribution can then lie from the exact one (total variation) has a bound; it is computed with the expert's own
logits and never leaves the device. Where it is over the limit, `open` asks for a wider answer. One-way never asks:
that request would depend on private logits. Knows nothing about connections.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from ssd_diffusion.ensemble import Weights
from ssd_kernels.codec import CodecKindName, CodecSpec, Decoded, decode, decode_full
from ssd_kernels.errors import CodecError
from ssd_kernels.tail import reshape_tail, total_variation_bound
from ssd_kernels.types import F32
from ssd_protos.limits import AHEAD_K
from ssd_protos.ssd.v1 import ssd_pb2

WIRE_CODECS: dict[CodecKindName, ssd_pb2.CodecKind.ValueType] = {
    "dense-f32": ssd_pb2.CODEC_KIND_DENSE_F32,
    "dense-f16": ssd_pb2.CODEC_KIND_DENSE_F16,
    "top-k": ssd_pb2.CODEC_KIND_TOP_K,
}
AHEAD_CODEC = CodecSpec(kind="top-k", k=AHEAD_K)
_WIDER = 4


@dataclass(frozen=True, slots=True)
class Bound:
    """The total-variation bound over an answer's passes.

    Attributes:
        mean: mean over open positions and passes.
        worst: the largest.
        asked_again: passes for which a wider answer was asked.
    """

    mean: float
    worst: float
    asked_again: int


class Received:
    """Decodes the core's logits and reviews them against the expert's. One object an answer.

    Args:
        codec: what was agreed.
        vocab: V.
        tail: the codec's tail shape, log-probabilities [V], or None.
        weights: of the ensemble; stay on this device.
        limit: largest bound at the leftmost open position before a wider answer is asked for; 1 never asks.
    """

    def __init__(self, codec: CodecSpec, *, vocab: int, tail: F32 | None, weights: Weights, limit: float) -> None:
        self._codec, self._vocab, self._tail, self._weights, self._limit = codec, vocab, tail, weights, limit
        self._last: Decoded | None = None
        self._k = codec.k
        self._sum, self._rows, self._worst, self._again = 0.0, 0, 0.0, 0
        self.ask: Callable[[int], F32] | None = None  # (entries) -> the first rows once more, with so many entries

    def read(self, logits: ssd_pb2.Logits, rows: int, k: int) -> F32:
        """The message as float32 [rows, V]. Raises CodecError."""
        if list(logits.shape) != [rows, self._vocab]:
            raise CodecError(f"The logits have the shape {list(logits.shape)} instead of [{rows}, {self._vocab}].")
        if logits.codec != WIRE_CODECS[self._codec.kind]:
            raise CodecError("The logits came in another codec than was agreed.")
        spec = replace(self._codec, k=max(k, self._codec.k)) if k else self._codec
        self._k = spec.k
        self._last = decode_full(logits.data, rows=rows, vocab=self._vocab, spec=spec, tail_logp=self._tail)
        return self._last.logp

    def read_ahead(self, logits: ssd_pb2.Logits, rows: int) -> F32:
        """Rows that only draft, as float32 [rows, V]: in few entries whatever the codec, and never reviewed.

        Raises CodecError.
        """
        if list(logits.shape) != [rows, self._vocab] or logits.codec != WIRE_CODECS["top-k"]:
            raise CodecError(
                f"The rows ahead have the shape {list(logits.shape)}, not [{rows}, {self._vocab}], or no top-k."
            )
        return decode(logits.data, rows=rows, vocab=self._vocab, spec=AHEAD_CODEC, tail_logp=self._tail)

    def review(self, core: F32, private: F32 | None, public: F32 | None) -> F32:
        """The core's logits to use: these, or wider ones where the bound at the first position is over the limit.

        It asks once: where a wider answer leaves the bound high, the token that the expert wants is one of which the
        core says next to nothing, and so would any number of entries.
        """
        core = self._reshaped(core, private, public)
        bound = self._bound(private, public)
        most = min(self._vocab, 0xFFFF)
        if self.ask is not None and bound is not None and bound[0] > self._limit and self._k < most:
            self._again += 1
            wider = self.ask(min(most, _WIDER * self._k))
            local = [None if rows is None else rows[: len(wider)] for rows in (private, public)]
            core = np.concatenate([self._reshaped(wider, *local), core[len(wider) :]])
            bound[: len(wider)] = self._bound(*local)
        if bound is not None:
            self._sum += float(bound.sum())
            self._rows += len(bound)
            self._worst = max(self._worst, float(bound.max()))
        return core

    def bound(self) -> Bound | None:
        """The bound so far, or None for a codec that leaves nothing out."""
        if not self._rows:
            return None
        return Bound(mean=self._sum / self._rows, worst=self._worst, asked_again=self._again)

    def _reshaped(self, core: F32, private: F32 | None, public: F32 | None) -> F32:
        """The core's rows with what a sparse codec left out shaped by the expert, nearest without private context."""
        local = private if public is None else public
        if self._codec.kind != "top-k" or self._last is None or local is None:
            return core
        self._last = reshape_tail(self._last, local, tail_logp=self._tail)
        return self._last.logp

    def _bound(self, private: F32 | None, public: F32 | None) -> F32 | None:
        if self._codec.kind != "top-k" or self._last is None:
            return None
        weights = self._weights
        alpha = weights.alpha if public is not None else 0.0
        return np.asarray(
            total_variation_bound(
                self._last, private, public, lam=weights.lam, alpha=alpha, contrast_top_p=weights.contrast_top_p
            ),
            dtype=np.float32,
        )
