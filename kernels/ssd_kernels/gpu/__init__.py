"""The same kernels on a card, in Triton: torch tensors in, torch tensors out, every row by itself.

Rows of several sessions go in one call: each brings its own key, position, step and block (`counters`), and none's bits
depend on its companions, for no sum runs over rows and no shape follows from their number. Not imported by the rest of
the package: it needs torch and triton. Without a card the kernels run under Triton's interpreter (TRITON_INTERPRET=1).
"""

from ssd_kernels.gpu.combine import fuse, log_softmax
from ssd_kernels.gpu.draw import sample
from ssd_kernels.gpu.embed import renoise_embed
from ssd_kernels.gpu.noise import counters, normals

__all__ = ["counters", "fuse", "log_softmax", "normals", "renoise_embed", "sample"]
