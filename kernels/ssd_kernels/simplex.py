"""The noisy logit simplex: renoise an estimate, and embed its softmax.

x_t = sqrt(alpha_bar) w~ + sqrt(1 - alpha_bar) K z, with w~ = +K on the estimate's ids and -K elsewhere, and z the
shared counter-based noise (SSD-LM, section 3). Knows nothing about schedules, networks or sessions.
"""

from __future__ import annotations

import numpy as np

from ssd_kernels.backend import BackendName, resolve
from ssd_kernels.errors import InvalidInput
from ssd_kernels.noise import kernel_counter, normals_f64
from ssd_kernels.philox import U32
from ssd_kernels.tables import Weights, WholeTable
from ssd_kernels.threads import over_rows
from ssd_kernels.types import F32, F64, I32, TokenSets

ROW_BLOCK = 16
"""Rows that one matrix product embeds. Fewer are padded: BLAS chooses its order of summation by the shape and by a
row's place in it, so a row's bits depend on itself and its place in the window, and not on what else is embedded."""


def _check_state(w_hat: TokenSets, alpha_bar: F32, positions: I32, vocab: int, k: float) -> F32:
    alpha_bar = np.ascontiguousarray(alpha_bar, dtype=np.float32)
    if alpha_bar.ndim != 1 or len(alpha_bar) != len(w_hat) or len(np.asarray(positions)) != len(w_hat):
        raise InvalidInput(f"Renoising {len(w_hat)} positions needs one alpha_bar and one position number for each.")
    if not bool(np.all((alpha_bar >= 0.0) & (alpha_bar <= 1.0))):
        raise InvalidInput("alpha_bar must lie from 0 to 1 at every position.")
    if len(w_hat.ids) and (int(w_hat.ids.min()) < 0 or int(w_hat.ids.max()) >= vocab):
        raise InvalidInput(f"The estimate holds token ids outside the vocabulary of {vocab}.")
    if not (k > 0.0 and np.isfinite(k)):
        raise InvalidInput(f"The simplex scale K must be above 0, not {k}.")
    return alpha_bar


def renoise(
    w_hat: TokenSets,
    alpha_bar: F32,
    *,
    noise_key: int,
    positions: I32,
    step: int,
    block: int,
    vocab: int,
    k: float = 5.0,
    backend: BackendName | None = None,
) -> F32:
    """The state x_t of every position from its estimate.

    Args:
        w_hat: estimate of B positions; a position with no id is -K everywhere.
        alpha_bar: share of the signal at each position, in [0, 1], [B].
        noise_key: key of the shared noise.
        positions: position word of the counter, [B].
        step: pass number.
        block: block number.
        vocab: V.
        k: simplex scale K.
        backend: numpy (float64 inside) or numba.

    Returns:
        x_t [B, V].

    Raises:
        InvalidInput: lengths that differ, or a value out of range.
    """
    alpha_bar = _check_state(w_hat, alpha_bar, positions, vocab, k)
    if resolve(backend) == "numba":
        from ssd_kernels import _numba_noise

        counter = kernel_counter(noise_key, positions, step=step, block=block, vocab=vocab)
        out = np.empty((len(w_hat), vocab), np.float32)
        _numba_noise.renoise_rows(*counter, w_hat.ids, w_hat.offsets, alpha_bar, float(k), out)
        return out
    x_t = renoise_f64(
        w_hat, alpha_bar, noise_key=noise_key, positions=positions, step=step, block=block, vocab=vocab, k=k
    )
    return x_t.astype(np.float32)


def renoise_f64(
    w_hat: TokenSets,
    alpha_bar: F32,
    *,
    noise_key: int,
    positions: I32,
    step: int,
    block: int,
    vocab: int,
    k: float = 5.0,
) -> F64:
    """The float64 reference of `renoise`, [B, V]."""
    ab = np.asarray(alpha_bar, dtype=np.float64)[:, None]
    w = np.full((len(w_hat), vocab), -k, np.float64)
    w[np.repeat(np.arange(len(w_hat)), np.diff(w_hat.offsets)), w_hat.ids] = k
    z = normals_f64(noise_key, positions, step=step, block=block, vocab=vocab)
    return np.asarray(np.sqrt(ab) * w + np.sqrt(1.0 - ab) * k * z)


def _softmax(x: F32, backend: BackendName) -> F32:
    if backend == "numba":
        from ssd_kernels import _numba_rows

        out = np.empty_like(x)
        over_rows(len(x), lambda first, last: _numba_rows.softmax_rows(first, last, x, out))
        return out
    p = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True))
    return np.asarray(p / p.sum(axis=1, keepdims=True)).astype(np.float32)


def softmax_embed(x: F32, table: F32 | WholeTable, *, backend: BackendName | None = None) -> F32:
    """softmax(x) @ table, in matrix products of one fixed shape, or by whole numbers (`tables`).

    Args:
        x: logits or state, [B, V].
        table: embedding rows, [V, H].
        backend: numpy, numba or None (the softmax; a product with plain rows is BLAS float32 in both).

    Returns:
        [B, H].

    Raises:
        InvalidInput: shapes that do not fit together.
    """
    x = np.ascontiguousarray(x, dtype=np.float32)
    if x.ndim != 2 or len(table.shape) != 2 or x.shape[1] != table.shape[0]:
        raise InvalidInput(f"Rows of the shape {x.shape} cannot be embedded by a table of the shape {table.shape}.")
    backend = resolve(backend)
    if isinstance(table, WholeTable):
        return _softmax_embed_whole(x, table, backend)
    out = np.empty((len(x), table.shape[1]), np.float32)
    padded = np.zeros((ROW_BLOCK, x.shape[1]), np.float32)
    for start in range(0, len(x), ROW_BLOCK):
        part = x[start : start + ROW_BLOCK]
        padded[: len(part)] = _softmax(part, backend)
        padded[len(part) :] = 0.0
        out[start : start + len(part)] = (padded @ table)[: len(part)]
    return out


def _softmax_embed_whole(x: F32, table: WholeTable, backend: BackendName) -> F32:
    if backend == "numpy":
        p = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True))
        return table.embed(Weights.of(p), exact=True)
    from ssd_kernels import _numba_embed

    out = Weights.empty(*x.shape)
    over_rows(len(x), lambda a, b: _numba_embed.logit_rows(a, b, x, out.whole, out.heavy, out.weights, out.sums))
    return table.embed(out)


def renoise_embed(
    w_hat: TokenSets,
    alpha_bar: F32,
    table: F32 | WholeTable,
    *,
    noise_key: int,
    positions: I32,
    step: int,
    block: int,
    k: float = 5.0,
    backend: BackendName | None = None,
) -> F32:
    """softmax(x_t) @ table, x_t never held for more than ROW_BLOCK positions, nor for more than one by whole numbers.

    Args:
        w_hat: estimate of B positions.
        alpha_bar: share of the signal at each position, [B].
        table: embedding rows, [V, H]; a `WholeTable` is several times as quick and has the error that it states.
        noise_key: key of the shared noise.
        positions: position word of the counter, [B].
        step: pass number.
        block: block number.
        k: simplex scale K.
        backend: numpy, numba or None.

    Returns:
        [B, H].

    Raises:
        InvalidInput: as `renoise` and `softmax_embed`.
    """
    vocab, hidden = table.shape
    alpha_bar = _check_state(w_hat, alpha_bar, positions, vocab, k)
    positions = np.asarray(positions)
    if isinstance(table, WholeTable) and resolve(backend) == "numba":
        return table.embed(
            _state_weights(
                w_hat, alpha_bar, k, vocab, kernel_counter(noise_key, positions, step=step, block=block, vocab=vocab)
            )
        )
    out = np.empty((len(w_hat), hidden), np.float32)
    for start in range(0, len(w_hat), ROW_BLOCK):
        rows = slice(start, start + ROW_BLOCK)
        offsets = w_hat.offsets[start : start + ROW_BLOCK + 1]
        part = TokenSets(ids=w_hat.ids[offsets[0] : offsets[-1]], offsets=offsets - offsets[0])
        x_t = renoise(
            part,
            alpha_bar[rows],
            noise_key=noise_key,
            positions=positions[rows],
            step=step,
            block=block,
            vocab=vocab,
            k=k,
            backend=backend,
        )
        out[rows] = softmax_embed(x_t, table, backend=backend)
    return out


def _state_weights(
    w_hat: TokenSets,
    alpha_bar: F32,
    k: float,
    vocab: int,
    counter: tuple[np.uint64, np.uint64, U32, np.uint64, np.uint64],
) -> Weights:
    from ssd_kernels import _numba_embed

    out = Weights.empty(len(w_hat), vocab)
    over_rows(
        len(w_hat),
        lambda first, last: _numba_embed.state_rows(
            first, last, *counter, w_hat.ids, w_hat.offsets, alpha_bar, float(k), out.whole, out.heavy, out.weights,
            out.sums,
        ),
    )  # fmt: skip
    return out
