"""A divergence between two sets of texts after MAUVE (Pillutla et al., NeurIPS 2021), from vectors of the texts.

The vectors of both sets are quantised together by k-means; P and Q are the shares of the clusters. The curve is

    C(P, Q) = {(exp(-c KL(Q | R)), exp(-c KL(P | R))) : R = l P + (1 - l) Q, 0 < l < 1},   c = 5

and the score is the area under it, between 0 and 1; 1 for equal shares. Few clusters hide differences and their borders
are a matter of luck, so there are more of them than in the paper, and the score is the mean over several starts. The
published scores use other vectors and far more texts: only scores of one run, with the same number of texts, may be
compared. Knows nothing about text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ssd_kernels.types import F32, F64, I64

SCALE = 5.0
TEXTS_PER_CLUSTER = 4
LEAST_TEXTS = 32
"""In each set; fewer give too few clusters to tell anything apart."""
_POINTS = 200
_ROUNDS = 100
_STARTS = 5


@dataclass(frozen=True, slots=True, eq=False)
class Quantised:
    """Two sets of n texts each as cluster numbers, from each start. [starts, n], [starts, n]"""

    p: I64
    q: I64
    clusters: int

    def score(self, rows: I64) -> float:
        """The mean area under the curve for the texts with these numbers in both sets."""
        return float(
            np.mean([area(self._shares(p[rows]), self._shares(q[rows])) for p, q in zip(self.p, self.q, strict=True)])
        )

    def _shares(self, labels: I64) -> F64:
        return np.bincount(labels, minlength=self.clusters) / len(labels)


def quantise(p: F32, q: F32, *, starts: int = 4) -> Quantised:
    """Cluster two sets of n vectors together, from several starts. [n, D], [n, D]"""
    points, clusters = np.concatenate([p, q]).astype(np.float64), max(2, len(p) // TEXTS_PER_CLUSTER)
    labels = np.stack([kmeans(points, clusters, seed=seed) for seed in range(starts)])
    return Quantised(labels[:, : len(p)], labels[:, len(p) :], clusters)


def kmeans(points: F64, clusters: int, *, seed: int = 0) -> I64:
    """Cluster of each point, by Lloyd's rounds from the best of a few k-means++ starts. [n, D] -> [n]

    Raises:
        ValueError: fewer points than clusters.
    """
    if not 1 <= clusters <= len(points):
        raise ValueError(f"{len(points)} points cannot be put into {clusters} clusters")
    rng = np.random.default_rng(seed)
    best: tuple[float, I64] | None = None
    for _ in range(_STARTS):
        centres = _spread(points, clusters, rng)
        labels = np.full(len(points), -1)
        for _ in range(_ROUNDS):
            distances = _distances(points, centres)
            found = distances.argmin(axis=1)
            if (found == labels).all():
                break
            labels = found
            for c in np.unique(labels):  # a cluster that lost its points keeps its centre
                centres[c] = points[labels == c].mean(axis=0)
        total = float(distances.min(axis=1).sum())
        if best is None or total < best[0]:
            best = total, labels.astype(np.int64)
    assert best is not None
    return best[1]


def _spread(points: F64, clusters: int, rng: np.random.Generator) -> F64:
    """First centres: each next one a point, drawn by its squared distance to those there are (k-means++)."""
    chosen = [int(rng.integers(len(points)))]
    for _ in range(clusters - 1):
        distance = _distances(points, points[chosen]).min(axis=1)
        total = distance.sum()
        chosen.append(int(rng.choice(len(points), p=distance / total if total > 0 else None)))
    return points[chosen].copy()


def _distances(points: F64, centres: F64) -> F64:
    """Squared distances. [n, k]"""
    return np.asarray(((points[:, None, :] - centres[None, :, :]) ** 2).sum(axis=2))


def area(p: F64, q: F64, *, scale: float = SCALE) -> float:
    """Area under the divergence curve of two distributions. [k], [k]

    Equal steps in l crowd where the curve is steep, so the integral is taken over both axes by turns and averaged, as
    the authors' code does.
    """
    mix = np.linspace(1e-6, 1 - 1e-6, _POINTS)
    x = np.exp([-scale * _kl(q, one * p + (1 - one) * q) for one in mix])
    y = np.exp([-scale * _kl(p, one * p + (1 - one) * q) for one in mix])
    x, y = np.concatenate([[1.0], x, [0.0]]), np.concatenate([[0.0], y, [1.0]])
    return float((_under(x, y) + _under(y, x)) / 2)


def _under(x: F64, y: F64) -> float:
    order = np.lexsort((-y, x))
    return float(np.trapezoid(y[order], x[order]))


def _kl(a: F64, b: F64) -> float:
    seen = a > 0
    return float((a[seen] * np.log(a[seen] / b[seen])).sum())
