"""What can go wrong below client and cloud; every message is one sentence that says what to do.

DiffusionError
├── InvalidStep          a step, grid or window that breaks the rules
├── InvalidModel         a model folder, checkpoint or tokenizer that is not what it should be
├── ContextOverflow      more tokens than a member can hold
├── MemberLost           a member cannot answer any more (node gone, deadline passed)
├── InvalidHome          the folder of this user's data cannot be used
└── TrainingError        training cannot go on (NaN loss, no data, foreign checkpoint)
"""

from __future__ import annotations


class DiffusionError(Exception):
    """Base of all errors raised by ssd_diffusion."""


class InvalidStep(DiffusionError):
    """A step, grid or window that breaks the rules of `window`."""


class InvalidModel(DiffusionError):
    """A model folder, checkpoint or tokenizer that is not what it should be."""


class ContextOverflow(DiffusionError):
    """More tokens than a member can hold."""


class MemberLost(DiffusionError):
    """A member cannot answer any more."""


class InvalidHome(DiffusionError):
    """The folder of this user's data cannot be used."""


class TrainingError(DiffusionError):
    """Training cannot go on."""
