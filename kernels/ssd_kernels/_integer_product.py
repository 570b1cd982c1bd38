"""One matrix product of bytes, by onnxruntime: it has kernels for what each processor can do with 8-bit numbers.

A session runs a graph of a single node, whose few bytes are written here, since the `onnx` package is not on a device.
Knows nothing about embeddings.
"""

from __future__ import annotations

import numpy as np
import onnxruntime

from ssd_kernels.tables import I8, U8
from ssd_kernels.types import I32

_INT8, _UINT8, _INT32 = 3, 2, 6
_OPSET, _IR = 13, 8


class IntegerProduct:
    """a @ table in 32-bit whole numbers; the caller sees to it that the sums fit.

    Args:
        table: [V, H].
        threads: 0 leaves the choice to onnxruntime.
    """

    def __init__(self, table: I8, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        # Idle threads sleep: the weights of the next rows are made on the same cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(_graph(table), options, providers=["CPUExecutionProvider"])

    def __call__(self, a: U8) -> I32:
        """The product. Args: a [R, V]. Returns [R, H]."""
        (found,) = self._session.run(None, {"a": a})
        return np.asarray(found)


def _graph(table: I8) -> bytes:
    """ModelProto of c = MatMulInteger(a, table), by the field numbers of onnx.proto."""
    vocab, hidden = table.shape
    node = _field(1, b"a") + _field(1, b"b") + _field(2, b"c") + _field(4, b"MatMulInteger")
    tensor = _field(1, vocab) + _field(1, hidden) + _field(2, _INT8) + _field(8, b"b") + _field(9, table.tobytes())
    graph = _field(1, node) + _field(2, b"product") + _field(5, tensor)
    graph += _field(11, _value(b"a", _UINT8, vocab)) + _field(12, _value(b"c", _INT32, hidden))
    return _field(1, _IR) + _field(7, graph) + _field(8, _field(2, _OPSET))


def _value(name: bytes, kind: int, width: int) -> bytes:
    """ValueInfoProto of a matrix with any number of rows."""
    shape = _field(1, _field(2, b"rows")) + _field(1, _field(1, width))
    return _field(1, name) + _field(2, _field(1, _field(1, kind) + _field(2, shape)))


def _field(number: int, value: int | bytes) -> bytes:
    """One protobuf field: a varint, or bytes with their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
