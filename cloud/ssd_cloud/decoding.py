"""Bytes that are no message reach the service as a mark, so that it answers INVALID_ARGUMENT like for any bad input.

Without it gRPC would answer UNKNOWN and log a traceback. Knows nothing about what the messages mean.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

if TYPE_CHECKING:
    Handler: TypeAlias = grpc.RpcMethodHandler[Any, Any]


class Undecodable:
    """Stands where a message could not be read."""


def _safely(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return Undecodable()

    return read


class DecodingInterceptor(grpc.aio.ServerInterceptor):
    """Puts the mark in place of unreadable messages, for one service.

    Args:
        service: full name; other services stay as they are.
    """

    def __init__(self, service: str) -> None:
        self._prefix = f"/{service}/"

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """The handler with a deserializer that never fails."""
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(self._prefix):
            return handler
        read = _safely(handler.request_deserializer) if handler.request_deserializer else None
        wrapped: Handler
        if handler.request_streaming:
            stream: Any = handler.stream_stream
            wrapped = grpc.stream_stream_rpc_method_handler(stream, read, handler.response_serializer)
        else:
            unary: Any = handler.unary_unary
            wrapped = grpc.unary_unary_rpc_method_handler(unary, read, handler.response_serializer)
        return wrapped
