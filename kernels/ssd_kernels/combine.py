"""Adding the members: log-softmax, entropy, and the fused log-probabilities of core and expert.

Knows nothing about where the rows come from (codec, engine) or what is done with them (projection).
"""

from __future__ import annotations

import numpy as np

from ssd_kernels.backend import BackendName, resolve
from ssd_kernels.errors import InvalidInput
from ssd_kernels.project import checked_rows, nucleus_mask
from ssd_kernels.threads import over_rows
from ssd_kernels.types import F32, F64


def log_softmax(logits: F32, *, backend: BackendName | None = None) -> F32:
    """Log-probabilities of every row, summed in float64.

    Args:
        logits: [..., V]; -inf marks an impossible token. A row with NaN, +inf or nothing finite becomes NaN.
        backend: numpy, numba or None.

    Returns:
        [..., V].
    """
    logits = np.ascontiguousarray(logits, dtype=np.float32)
    if resolve(backend) == "numba":
        from ssd_kernels import _numba_rows

        out = np.empty_like(logits)
        rows, outs = logits.reshape(-1, logits.shape[-1]), out.reshape(-1, logits.shape[-1])
        over_rows(len(rows), lambda first, last: _numba_rows.log_softmax_rows(first, last, rows, outs), least=8)
        return out
    return log_softmax_f64(logits).astype(np.float32)


def log_softmax_f64(logits: F32 | F64) -> F64:
    """The float64 reference of `log_softmax`, [..., V]."""
    x = np.asarray(logits, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        x = x - x.max(axis=-1, keepdims=True)
        return np.asarray(x - np.log(np.exp(x).sum(axis=-1, keepdims=True)))


def entropy(logp: F32, *, backend: BackendName | None = None) -> F32:
    """Entropy of every row in nats; tokens of probability 0 add nothing.

    Args:
        logp: normalised log-probabilities, [B, V].
        backend: numpy, numba or None.

    Returns:
        [B].
    """
    logp = np.ascontiguousarray(logp, dtype=np.float32)
    if resolve(backend) == "numba":
        from ssd_kernels import _numba_rows

        out = np.empty(len(logp), np.float32)
        over_rows(len(logp), lambda first, last: _numba_rows.entropy_rows(first, last, logp, out))
        return out
    x = logp.astype(np.float64)
    return np.asarray(-np.where(np.isneginf(x), 0.0, np.exp(x) * np.where(np.isneginf(x), 0.0, x)).sum(axis=-1)).astype(
        np.float32
    )


def _check_fuse(rows: list[F32], lam: float, alpha: float) -> None:
    if not 0.0 <= lam <= 1.0:
        raise InvalidInput(f"lambda is the expert's share and must lie from 0 to 1, not {lam}.")
    if not (alpha >= 0.0 and np.isfinite(alpha)):
        raise InvalidInput(f"alpha must be a number from 0 upwards, not {alpha}.")
    if any(r.ndim != 2 or r.shape != rows[0].shape for r in rows):
        shapes = ", ".join(str(r.shape) for r in rows)
        raise InvalidInput(f"The members' rows must share one shape [B, V]; these came: {shapes}.")


def fuse(
    core: F32 | None,
    private: F32 | None,
    public: F32 | None,
    *,
    lam: float,
    alpha: float,
    contrast_top_p: float = 0.95,
    normalise: bool = True,
    backend: BackendName | None = None,
) -> F32:
    """The ensemble: (1 - lam) core + lam [private + alpha (private - public)], as log-probabilities.

    The contrastive term acts only on the private row's own nucleus of mass `contrast_top_p`, and is 0 elsewhere and
    where it is not finite: negative weights amplify what is noise in the tail.

    Args:
        core: logits or log-probabilities [B, V]; None: the expert alone (lam counts as 1).
        private: the expert with private context [B, V]; None: the core alone.
        public: the expert without private context [B, V]; None: alpha counts as 0.
        lam: the expert's share in [0, 1].
        alpha: weight of the contrastive term, >= 0.
        contrast_top_p: mass of the nucleus on which the contrastive term acts.
        normalise: log-softmax of every input first; False adds raw logits (not every model is normalised alike).
        backend: numpy, numba or None.

    Returns:
        Fused log-probabilities [B, V], normalised.

    Raises:
        InvalidInput: lam or alpha out of range, no member, or shapes that differ.
    """
    rows = [np.ascontiguousarray(r, dtype=np.float32) for r in (core, private, public) if r is not None]
    if core is None and private is None:
        raise InvalidInput("There is nothing to combine: give the core's rows, the expert's, or both.")
    _check_fuse(rows, lam, alpha)
    backend = resolve(backend)
    if private is None:
        return log_softmax(rows[0], backend=backend)
    lam = 1.0 if core is None else lam
    alpha = 0.0 if public is None else alpha
    if backend == "numba" and lam > 0.0:
        return _fuse_numba(core, private, public, lam, alpha, contrast_top_p, normalise)
    if normalise:
        core = None if core is None else log_softmax(core, backend=backend)
        private = log_softmax(private, backend=backend)
        public = None if public is None else log_softmax(public, backend=backend)
    total = np.zeros(private.shape, np.float64)
    if core is not None and lam < 1.0:
        total += (1.0 - lam) * core.astype(np.float64)
    if lam > 0.0:
        total += lam * expert_term(private, public, alpha=alpha, contrast_top_p=contrast_top_p, backend=backend)
    return log_softmax_f64(total).astype(np.float32)


def _fuse_numba(
    core: F32 | None, private: F32, public: F32 | None, lam: float, alpha: float, top_p: float, normalise: bool
) -> F32:
    from ssd_kernels import _numba_fuse

    none = np.empty((0, private.shape[1]), np.float32)
    spoken = [none if rows is None else np.ascontiguousarray(rows, np.float32) for rows in (core, private, public)]
    first_core = spoken[0] if lam < 1.0 else none
    if len(spoken[2]) and alpha > 0.0:
        checked_rows(spoken[1])  # the contrast acts on their nucleus
    out = np.empty(private.shape, np.float32)
    over_rows(
        len(out),
        lambda first, last: _numba_fuse.fuse_rows(
            first, last, first_core, spoken[1], spoken[2], lam, alpha, top_p, normalise, out
        ),
    )
    return out


def expert_term(
    private: F32, public: F32 | None, *, alpha: float, contrast_top_p: float = 0.95, backend: BackendName | None = None
) -> F64:
    """private + alpha (private - public) on the private row's nucleus, private elsewhere. [B, V]"""
    term = np.asarray(private, dtype=np.float64)
    if public is None or alpha == 0.0:
        return term
    with np.errstate(invalid="ignore"):
        ratio = term - np.asarray(public, dtype=np.float64)
    act = nucleus_mask(private, contrast_top_p, backend=backend) & np.isfinite(ratio)
    return np.asarray(term + np.where(act, alpha * np.where(act, ratio, 0.0), 0.0))
