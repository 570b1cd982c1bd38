"""What can go wrong on the device: one sentence that says what to do for each error, an exit code for each class.

    ClientError                    1
    ├── UsageError                 2   what the user wrote cannot be meant
    │   ├── BadInput               2   a folder, file or text that cannot be read as what it should be
    │   ├── ConfigError            2   a setting in the configuration file or the environment
    │   ├── ExpertNotFound         2   no expert of that name
    │   └── ConsentNeeded          2   something would leave the device that the user has not agreed to
    ├── StoreError                 1   the local store: damaged, foreign, full, locked
    ├── IndexFault                 1   the document index: damaged or of another version
    ├── LedgerError                1   the ledger cannot be written: nothing is sent then
    ├── PersonalizeError           1   an expert could not be made
    ├── Stopped                  130   the user's ctrl-C, with how to go on
    └── NodeError                  1   anything about a node
        ├── NodeUnreachable        1   no connection, no answer in time, full
        ├── NodeRefused            1   the token is missing or wrong
        └── NodeMismatch           1   another version, tokenizer or model

Knows nothing of how the sentence is shown.
"""

from __future__ import annotations

from typing import ClassVar


class ClientError(Exception):
    """Base of all errors raised by ssd_client; `str()` is one sentence for the user."""

    exit_code: ClassVar[int] = 1


class UsageError(ClientError):
    """What the user wrote cannot be meant."""

    exit_code: ClassVar[int] = 2


class BadInput(UsageError):
    """A folder, file or text that cannot be read as what it should be."""


class ConfigError(UsageError):
    """A setting in the configuration file or the environment that cannot be meant."""


class ExpertNotFound(UsageError):
    """No expert of that name."""


class ConsentNeeded(UsageError):
    """Something would leave the device that the user has not agreed to."""


class StoreError(ClientError):
    """The local store is damaged, foreign, full or locked."""


class IndexFault(ClientError):
    """The document index is damaged or of another version."""


class LedgerError(ClientError):
    """The ledger cannot be written; what it should note is not sent."""


class PersonalizeError(ClientError):
    """An expert could not be made."""


class Stopped(ClientError):
    """The user's ctrl-C, where there is something to say about going on."""

    exit_code: ClassVar[int] = 130


class NodeError(ClientError):
    """Anything about a node."""


class NodeUnreachable(NodeError):
    """No connection, no answer in time, or no room on the node."""


class NodeRefused(NodeError):
    """The node refused the token."""


class NodeMismatch(NodeError):
    """A node of another version, tokenizer or model."""
