"""How torch's threads wait for work, which OpenMP reads from the environment when torch is loaded.

Where core and expert answer on the same few cores, threads that spin between products take them from each other, and a
step becomes several times slower: they wait quietly unless told otherwise. Training has the machine to itself, and in
its many small products waking a thread costs more than the product: with threads that spin a step of personalization
takes two thirds of the time. What the user has set stays. Knows nothing else.
"""

from __future__ import annotations

import os

_QUIET = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
_set_here: set[str] = set()


def wait_quietly() -> None:
    """Threads sleep as soon as they have nothing to do. For packages, when they are imported."""
    for name in _QUIET.keys() - os.environ.keys():
        os.environ[name] = _QUIET[name]
        _set_here.add(name)


def wait_busily() -> None:
    """Threads spin for a while before they sleep. For commands that train, before torch is loaded."""
    while _set_here:
        os.environ.pop(_set_here.pop(), None)
