"""Keys of the counter-based randomness: one that is shared, one that never leaves the device.

`noise_key` makes the noise of the state and is sent to the node. `draw_key` makes the projection's draws; a node that
knew it would read each id as an exact inequality on private logits, so it is derived with the device's secret.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets


def new_seed() -> int:
    """A random seed for an answer whose user gave none: 63 bits."""
    return secrets.randbits(63)


def noise_key(seed: int) -> int:
    """The shared key of the noise, 64 bits. A hash, so that the seed itself does not cross the wire."""
    return _first64(hashlib.sha256(b"ssd2 noise\0" + _seed_bytes(seed)).digest())


def core_draw_key(seed: int) -> int:
    """Key of the node's own draws in one-way mode, 64 bits; depends on the seed alone, never on the device."""
    return _first64(hashlib.sha256(b"ssd2 core draw\0" + _seed_bytes(seed)).digest())


def draw_key(secret: bytes, seed: int) -> int:
    """The device's own key of the projection draw, 64 bits: HMAC(device secret, seed)."""
    return _first64(hmac.new(secret, b"ssd2 draw\0" + _seed_bytes(seed), hashlib.sha256).digest())


def _seed_bytes(seed: int) -> bytes:
    return seed.to_bytes(16, "little", signed=True)


def _first64(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "little")
