"""Access tokens: made, kept as hashes, compared in constant time; the interceptor that asks for one.

A token is 256 random bits, so a plain SHA-256 keeps it safe at rest: there is nothing to guess that a slow hash would
protect. Knows nothing about sessions or models.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc

from ssd_cloud.errors import StartError, UsageError

ANONYMOUS = "anonymous"
GIVEN = "given"
_PREFIX = "ssd_"
_FORMAT = 1
_OPEN_SERVICES = ("/grpc.health.v1.Health/",)
_DENIED = "the node wants a valid token: pass --token, or set SSD_TOKEN, to what `ssd-cloud token new` printed"


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """One token as it is stored.

    Attributes:
        id: short public name; sessions belong to it.
        name: what the operator calls it.
        sha256: hash of the token, hex.
        created: UTC time, ISO 8601.
    """

    id: str
    name: str
    sha256: str
    created: str


class TokenFile:
    """The tokens of one node in HOME/node/tokens.json, mode 0600.

    Args:
        path: the file; made on first use.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp: tuple[int, int] | None = None
        self._records: tuple[TokenRecord, ...] = ()

    @staticmethod
    def under(home: Path) -> TokenFile:
        """The token file of a home folder."""
        return TokenFile(home / "node" / "tokens.json")

    def records(self) -> tuple[TokenRecord, ...]:
        """All tokens; the file is read again when it has changed.

        Raises:
            StartError: the file is not what this program wrote.
        """
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            self._stamp, self._records = None, ()
            return ()
        if self._stamp != (stat.st_mtime_ns, stat.st_ino):
            self._records = self._read()
            self._stamp = (stat.st_mtime_ns, stat.st_ino)
        return self._records

    def new(self, name: str = "") -> tuple[TokenRecord, str]:
        """Make and store a token; returns its record and the token itself, which is not kept."""
        token = _PREFIX + secrets.token_urlsafe(32)
        record = TokenRecord(
            id=secrets.token_hex(4), name=name or "default", sha256=_hash(token),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )  # fmt: skip
        self._write([*self.records(), record])
        return record, token

    def revoke(self, token_id: str) -> TokenRecord:
        """Remove a token by its id.

        Raises:
            UsageError: there is no such token.
        """
        found = [r for r in self.records() if r.id == token_id]
        if not found:
            raise UsageError(f"there is no token {token_id}; `ssd-cloud token list` shows them")
        self._write([r for r in self.records() if r.id != token_id])
        return found[0]

    def _read(self) -> tuple[TokenRecord, ...]:
        try:
            stored = json.loads(self.path.read_text())
            if stored["format"] != _FORMAT:
                raise ValueError("another format")
            return tuple(TokenRecord(**{k: str(v) for k, v in record.items()}) for record in stored["tokens"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StartError(f"{self.path} cannot be read as a token file; remove it and make new tokens") from error

    def _write(self, records: Iterable[TokenRecord]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = self.path.with_name(f".tokens-{os.getpid()}-{secrets.token_hex(4)}")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                json.dump({"format": _FORMAT, "tokens": [asdict(r) for r in records]}, file, indent=1)
            temporary.replace(self.path)
        except OSError as error:
            raise StartError(f"the tokens cannot be written to {self.path} ({error.strerror})") from error
        finally:
            temporary.unlink(missing_ok=True)


class Authenticator:
    """Says whose call it is.

    Args:
        file: stored tokens; None where none are used.
        given: a token given for this start only.
        required: False lets everybody in as one anonymous caller.
    """

    def __init__(self, file: TokenFile | None, *, given: str | None = None, required: bool = True) -> None:
        self._file, self._required = file, required
        self._given = None if given is None else _hash(given)

    def caller(self, metadata: Iterable[tuple[str, str | bytes]] | None) -> str | None:
        """Id of the token in a call's metadata, or None when it has no valid one."""
        if not self._required:
            return ANONYMOUS
        words = [v for k, v in metadata or () if k == "authorization"]
        if len(words) != 1 or not isinstance(words[0], str) or not words[0].startswith("Bearer "):
            return None
        presented = _hash(words[0].removeprefix("Bearer "))
        found = None
        for token_id, known in self._known():  # always all of them: the time taken says nothing
            if hmac.compare_digest(known, presented):
                found = token_id
        return found

    def _known(self) -> list[tuple[str, str]]:
        known = [(GIVEN, self._given)] if self._given is not None else []
        if self._file is not None:
            try:
                known += [(record.id, record.sha256) for record in self._file.records()]
            except StartError:  # damaged while the node runs: nobody gets in by it
                return known
        return known


if TYPE_CHECKING:
    Handler: TypeAlias = grpc.RpcMethodHandler[Any, Any]


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Refuses every call without a valid token, except health checks.

    Args:
        authenticator: decides.
    """

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Pass the call on, or answer UNAUTHENTICATED in its place."""
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(_OPEN_SERVICES):
            return handler
        if self._authenticator.caller(handler_call_details.invocation_metadata) is not None:
            return handler
        return _refusal(handler)


async def _deny(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, _DENIED)


def _refusal(handler: Handler) -> Handler:
    make: Callable[..., Handler] = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[(bool(handler.request_streaming), bool(handler.response_streaming))]
    return make(_deny, handler.request_deserializer, handler.response_serializer)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
