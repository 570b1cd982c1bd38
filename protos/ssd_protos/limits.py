"""Bounds on messages and sessions, derived from V, B and the context length: the same function on both sides.

Neither gRPC's default of 4 MB nor unlimited. Knows nothing about sessions or models.
"""

from __future__ import annotations

from dataclasses import dataclass

from ssd_protos.packing import id_bytes

PROTOCOL = "1"
MAX_GRID = 1024
MAX_DRAFTS = 16
"""Most drafts of a pass that looks ahead."""
MAX_DEPTH = 8
"""Most open positions ahead of a draft: a pass has (drafts + 1) (depth + 1) rows."""
AHEAD_K = 64
"""Most entries of a row that only drafts."""
_MAX_SET_IDS = 4096
_MIN_PASSES = 4096
_STEP_OVERHEAD_BYTES = 24
_MESSAGE_OVERHEAD_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one node.

    Attributes:
        max_request_bytes: largest message from device to node.
        max_response_bytes: largest message from node to device.
        max_passes: most passes of a session, replayed ones included.
        max_set_ids: multi-hot: most ids at one position.
    """

    max_request_bytes: int
    max_response_bytes: int
    max_passes: int
    max_set_ids: int

    @staticmethod
    def of(*, vocab: int, max_block: int, max_context: int) -> Limits:
        """The bounds for V tokens, at most B open positions and a context of at most `max_context` tokens.

        A request holds a whole history of single-id steps, or one multi-hot step; a response one dense float32 [B, V].
        """
        width = id_bytes(vocab)
        passes = max(_MIN_PASSES, 4 * max_context)
        set_ids = min(vocab, _MAX_SET_IDS)
        step = max_block * width + (max_block + 7) // 8 + _STEP_OVERHEAD_BYTES
        multi_hot = max_block * (set_ids * width + 2)
        return Limits(
            max_request_bytes=max_context * width + passes * step + multi_hot + _MESSAGE_OVERHEAD_BYTES,
            max_response_bytes=max_block * vocab * 4 + multi_hot + _MESSAGE_OVERHEAD_BYTES,
            max_passes=passes,
            max_set_ids=set_ids,
        )


def channel_options(*, max_send_bytes: int, max_receive_bytes: int) -> list[tuple[str, int]]:
    """gRPC options for a channel or server: the two message bounds and keepalive.

    Args:
        max_send_bytes: largest message that this side sends.
        max_receive_bytes: largest message that this side takes.
    """
    return [
        ("grpc.max_send_message_length", max_send_bytes),
        ("grpc.max_receive_message_length", max_receive_bytes),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.http2.max_pings_without_data", 0),
    ]
