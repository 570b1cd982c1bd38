"""Numerical kernels that device and node must agree on: noise, renoise, embed, projection, fusion, logit codec.

Each public function has several backends (numpy reference, numba on CPU) chosen by the argument `backend` or the
environment variable SSD_KERNELS_BACKEND. Importing this package imports numpy only.
"""

from ssd_kernels.codec import CodecSpec, Decoded, decode, decode_full, encode
from ssd_kernels.combine import entropy, fuse, log_softmax
from ssd_kernels.errors import CodecError, InvalidInput, KernelError
from ssd_kernels.noise import gumbels, normals
from ssd_kernels.philox import philox4x32, uniforms
from ssd_kernels.project import greedy, multi_hot, nucleus_mask, sample
from ssd_kernels.simplex import renoise, renoise_embed, softmax_embed
from ssd_kernels.tail import reshape_tail, total_variation_bound
from ssd_kernels.types import Purpose, TokenSets

__all__ = [
    "CodecError",
    "CodecSpec",
    "Decoded",
    "InvalidInput",
    "KernelError",
    "Purpose",
    "TokenSets",
    "decode",
    "decode_full",
    "encode",
    "entropy",
    "fuse",
    "greedy",
    "gumbels",
    "log_softmax",
    "multi_hot",
    "normals",
    "nucleus_mask",
    "philox4x32",
    "renoise",
    "renoise_embed",
    "reshape_tail",
    "sample",
    "softmax_embed",
    "total_variation_bound",
    "uniforms",
]
