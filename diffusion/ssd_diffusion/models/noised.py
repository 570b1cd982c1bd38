"""softmax(x_t) E of many windows at once on a card, by the kernels of `ssd_kernels.gpu`.

Knows windows and tables; nothing about slots, passes or networks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from ssd_kernels import gpu
from ssd_kernels.types import TokenSets
from torch import Tensor

from ssd_diffusion.schedule import alpha_bar
from ssd_diffusion.window import Window


def embed_noised(windows: Sequence[Window], table: Tensor, *, simplex_k: float, schedule_s: float) -> Tensor:
    """softmax(x_t) E at the positions with 0 < u < 1, zero elsewhere. [R, B, H], float32

    Args:
        windows: R of them, all of B positions.
        table: input embeddings E, where the result is wanted. [V, H]
        simplex_k: K of the simplex.
        schedule_s: s of the cosine schedule.
    """
    picked = [np.flatnonzero((window.u > 0) & (window.u < 1)) for window in windows]
    out = torch.zeros(len(windows), len(windows[0].u), table.shape[1], device=table.device)
    if not any(map(len, picked)):
        return out
    w_hat = TokenSets.of([w.w_hat.row(int(i)).tolist() for w, pick in zip(windows, picked, strict=True) for i in pick])
    shares = [alpha_bar(w.u[pick], schedule_s) for w, pick in zip(windows, picked, strict=True)]
    counters = [
        gpu.counters(w.noise_key, w.positions[pick], step=w.step, block=w.block)
        for w, pick in zip(windows, picked, strict=True)
    ]
    ids, offsets, share, rows = (
        torch.from_numpy(array).to(table.device)
        for array in (
            w_hat.ids, w_hat.offsets, np.concatenate(shares).astype(np.float32), np.concatenate(counters)
        )
    )  # fmt: skip
    at = [i * out.shape[1] + pick for i, pick in enumerate(picked)]
    where = torch.from_numpy(np.concatenate(at)).to(table.device)
    out.view(-1, out.shape[2])[where] = gpu.renoise_embed(ids, offsets, share, table, rows, k=simplex_k)
    return out
