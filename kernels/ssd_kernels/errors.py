"""What can go wrong in a kernel; every message is one sentence that says what to do.

KernelError (a ValueError)
├── InvalidInput    shapes, ranges or rows that a kernel cannot work on (NaN rows among them)
└── CodecError      bytes that are not what the codec wrote, or logits it cannot write
"""

from __future__ import annotations


class KernelError(ValueError):
    """Base of all errors raised by ssd_kernels."""


class InvalidInput(KernelError):
    """Shapes, ranges or rows that a kernel cannot work on."""


class CodecError(KernelError):
    """Bytes that are not what the codec wrote, or logits that it cannot write."""
