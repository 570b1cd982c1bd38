"""What can go wrong on the node; every message is one sentence that a caller may read.

NodeError
├── RequestError          answered to the caller with a gRPC status
│   ├── BadRequest        INVALID_ARGUMENT: a message that breaks the rules
│   ├── Mismatch          FAILED_PRECONDITION: another wire version, model or tokenizer
│   ├── NodeFull          RESOURCE_EXHAUSTED: no room now; carries when to come back
│   ├── UnknownSession    NOT_FOUND: no such session, or another caller's
│   ├── Draining          UNAVAILABLE: the node is shutting down
│   ├── Expired           DEADLINE_EXCEEDED: the deadline passed, or nothing came for too long
│   └── EngineFailed      INTERNAL: the model could not compute
├── StartError            the node cannot start as asked (exit 1)
├── DataError             the training data cannot be made (exit 1)
└── UsageError            flags or configuration that make no sense (exit 2)
"""

from __future__ import annotations

from typing import ClassVar


class NodeError(Exception):
    """Base of all errors raised by ssd_cloud."""


class RequestError(NodeError):
    """A request that is answered with a status instead of a result."""

    code: ClassVar[str] = "UNKNOWN"
    retry_after_s: float | None = None


class BadRequest(RequestError):
    """A message that breaks the rules of the wire."""

    code = "INVALID_ARGUMENT"


class Mismatch(RequestError):
    """The caller speaks another wire version, or expects another model or tokenizer."""

    code = "FAILED_PRECONDITION"


class NodeFull(RequestError):
    """No room for another session now.

    Args:
        message: one sentence.
        retry_after_s: when to come back, in seconds; None where waiting does not help.
    """

    code = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, retry_after_s: float | None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnknownSession(RequestError):
    """No such session for this caller."""

    code = "NOT_FOUND"

    def __init__(self) -> None:
        super().__init__("the node holds no such session; open it again with its history")


class Draining(RequestError):
    """The node is shutting down."""

    code = "UNAVAILABLE"

    def __init__(self) -> None:
        super().__init__("the node is shutting down; open the session again with its history, here or elsewhere")


class Expired(RequestError):
    """The deadline passed before the work was done, or nothing came for too long."""

    code = "DEADLINE_EXCEEDED"


class EngineFailed(RequestError):
    """The model could not compute."""

    code = "INTERNAL"

    def __init__(self) -> None:
        super().__init__(
            "the node's model failed in this pass; open the session again, and tell its operator if it stays"
        )


class StartError(NodeError):
    """The node cannot start as asked."""


class DataError(NodeError):
    """The training data cannot be made."""


class UsageError(NodeError):
    """Flags or configuration that make no sense."""
