"""From log-probabilities to `w_hat`: greedy, multi-hot and sampling by Gumbel-max over the nucleus.

The nucleus of a row is every token whose preceding cumulative probability (probabilities descending, ties to the lower
id) is below `top_p`; it is never empty. So that every backend finds the same set whatever the order of its sums, each
probability counts as the whole number rint(2^45 p / p_max), and whole numbers add exactly; from top_p = 1 on the
nucleus is every token of probability > 0. Knows nothing about members, windows or acceptance.
"""

from __future__ import annotations

import numpy as np

from ssd_kernels.backend import BackendName, resolve
from ssd_kernels.errors import InvalidInput
from ssd_kernels.noise import check_counter, gumbels_at, kernel_counter
from ssd_kernels.threads import over_rows
from ssd_kernels.types import F32, I32, I64, Bool, Purpose, TokenSets

WEIGHT_SCALE = 2.0**45


def checked_rows(logp: F32) -> tuple[F32, F32]:
    """The rows as contiguous float32 [B, V] and the largest value of each.

    Raises:
        InvalidInput: rows of another shape, or a row with NaN, +inf or nothing finite.
    """
    logp = np.ascontiguousarray(logp, dtype=np.float32)
    if logp.ndim != 2 or logp.shape[1] == 0:
        raise InvalidInput(f"A projection needs rows of the shape [B, V], not {logp.shape}.")
    peak = logp.max(axis=1)
    bad = np.flatnonzero(~np.isfinite(peak))
    if len(bad):
        raise InvalidInput(
            f"Row {int(bad[0])} of the log-probabilities holds NaN or infinite values, so no token can be chosen: "
            "check the model's weights."
        )
    return logp, peak


def _check(top_p: float, temperature: float) -> None:
    if not top_p > 0.0:
        raise InvalidInput(f"top_p must be above 0, not {top_p}.")
    if not (temperature >= 0.0 and np.isfinite(temperature)):
        raise InvalidInput(f"The temperature must be a number from 0 upwards, not {temperature}.")


def greedy(logp: F32, *, backend: BackendName | None = None) -> TokenSets:
    """The most probable token of every row, ties to the lower id.

    Args:
        logp: log-probabilities [B, V].
        backend: accepted for symmetry; every backend gives the same.

    Raises:
        InvalidInput: a row with NaN, +inf or nothing finite.
    """
    resolve(backend)
    return TokenSets.single(checked_rows(logp)[0].argmax(axis=1).astype(np.int32))


def nucleus_mask(logp: F32, top_p: float, *, temperature: float = 1.0, backend: BackendName | None = None) -> Bool:
    """Which tokens belong to the nucleus of mass `top_p` of softmax(logp / temperature). [B, V]

    Raises:
        InvalidInput: top_p <= 0, temperature <= 0, or a row with NaN, +inf or nothing finite.
    """
    _check(top_p, temperature)
    if temperature == 0.0:
        raise InvalidInput("A nucleus needs a temperature above 0; temperature 0 is the greedy choice.")
    logp, peak = checked_rows(logp)
    if top_p >= 1.0:
        return np.asarray(~np.isneginf(logp))
    mask = np.zeros(logp.shape, np.bool_)
    if resolve(backend) == "numba":
        from ssd_kernels import _numba_nucleus

        over_rows(len(logp), lambda a, b: _numba_nucleus.nucleus_rows(a, b, logp, peak, top_p, temperature, mask))
        return mask
    for row, out in zip(logp, mask, strict=True):
        order = np.argsort(-row, kind="stable")
        weights = _weights(row, temperature)[order]
        preceding = np.cumsum(weights) - weights
        out[order] = preceding.astype(np.float64) < top_p * float(weights.sum())
    return mask


def _weights(row: F32, temperature: float) -> I64:
    """Whole-number weights rint(2^45 p / p_max) of one row, [V]."""
    d = row.astype(np.float64) - float(row.max())
    return np.rint(np.exp(d / temperature) * WEIGHT_SCALE).astype(np.int64)


def multi_hot(logp: F32, *, top_p: float, temperature: float = 1.0, backend: BackendName | None = None) -> TokenSets:
    """The whole nucleus of every row; temperature 0 is greedy.

    Args:
        logp: log-probabilities [B, V].
        top_p: mass of the nucleus, above 0.
        temperature: softmax temperature, from 0.
        backend: numpy, numba or None.

    Raises:
        InvalidInput: a setting out of range, or a row with NaN, +inf or nothing finite.
    """
    _check(top_p, temperature)
    if temperature == 0.0:
        return greedy(logp)
    mask = nucleus_mask(logp, top_p, temperature=temperature, backend=backend)
    offsets = np.concatenate([[0], np.cumsum(mask.sum(axis=1))]).astype(np.int32)
    return TokenSets(ids=np.nonzero(mask)[1].astype(np.int32), offsets=offsets)


def sample(
    logp: F32,
    *,
    top_p: float,
    temperature: float,
    draw_key: int,
    positions: I32,
    step: int,
    block: int,
    purpose: Purpose = Purpose.DRAW,
    backend: BackendName | None = None,
) -> TokenSets:
    """One draw per row from the nucleus of softmax(logp / temperature): argmax of logp / temperature + Gumbel g.

    The Gumbel g of a token depends on key, token id, position, step, block and purpose alone, so two sides whose rows
    differ in the last digits still draw the same token almost always. Scores are float64; ties go to the lower id.

    Args:
        logp: log-probabilities [B, V].
        top_p: mass of the nucleus, above 0.
        temperature: softmax temperature; 0 is greedy.
        draw_key: 64-bit key of the draw; never sent.
        positions: position word of the counter, [B].
        step: pass number.
        block: block number.
        purpose: stream of the draw.
        backend: numpy, numba or None.

    Raises:
        InvalidInput: a setting out of range, or a row with NaN, +inf or nothing finite.
    """
    _check(top_p, temperature)
    if temperature == 0.0:
        return greedy(logp)
    logp, peak = checked_rows(logp)
    rows = check_counter(positions, step, logp.shape[1])
    if len(rows) != len(logp):
        raise InvalidInput(f"A draw needs one position for each of the {len(logp)} rows, not {len(rows)}.")
    counter = kernel_counter(draw_key, positions, step=step, block=block, vocab=logp.shape[1], purpose=purpose)
    chosen = np.empty(len(rows), np.int32)
    if resolve(backend) == "numba":
        from ssd_kernels import _numba_nucleus

        over_rows(
            len(logp), lambda a, b: _numba_nucleus.sample_rows(a, b, logp, peak, top_p, temperature, *counter, chosen)
        )
        return TokenSets.single(chosen)
    mask = nucleus_mask(logp, top_p, temperature=temperature, backend=backend)
    for i, position in enumerate(rows):
        ids = np.flatnonzero(mask[i]).astype(np.int32)
        g = gumbels_at(draw_key, ids, int(position), step=step, block=block, purpose=purpose)
        chosen[i] = ids[np.argmax(logp[i, ids].astype(np.float64) / temperature + g)]
    return TokenSets.single(chosen)
