"""Loads the compiled kernels of an answer before they are needed: numba reads what it keeps on disk once a process.

Knows which kernels a step of the ensemble uses; nothing about who waits for them.
"""

from __future__ import annotations

import numpy as np

from ssd_kernels.backend import resolve
from ssd_kernels.codec import CodecSpec, decode_full, encode
from ssd_kernels.combine import entropy, fuse
from ssd_kernels.project import multi_hot, sample
from ssd_kernels.tail import reshape_tail, total_variation_bound


def warm_up() -> None:
    """Run every kernel of a step once, on rows of a few tokens. Does nothing on the numpy backend.

    Raises:
        InvalidInput: a backend or number of threads in the environment that does not exist.
    """
    if resolve() != "numba":
        return
    rows, spec = np.zeros((1, 8), np.float32), CodecSpec(k=2)
    sent = encode(rows, spec, backend="numpy")  # compiled it is the node's kernel, not the device's
    seen = reshape_tail(decode_full(sent, rows=1, vocab=8, spec=spec), rows)
    total_variation_bound(seen, rows, rows, lam=0.5, alpha=0.5)
    logp = fuse(seen.logp, rows, rows, lam=0.5, alpha=0.5)
    entropy(logp)
    multi_hot(logp, top_p=0.5)
    sample(logp, top_p=0.5, temperature=1.0, draw_key=0, positions=np.zeros(1, np.int32), step=0, block=0)
