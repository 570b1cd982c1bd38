"""Packing, bounds, and that the generated code is current."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import ssd_protos
from hypothesis import given
from hypothesis import strategies as st
from ssd_protos import generate
from ssd_protos.limits import Limits, channel_options
from ssd_protos.packing import (
    PackingError,
    id_bytes,
    pack_counts,
    pack_flags,
    pack_ids,
    unpack_flags,
    unpack_ids,
    unpack_sets,
)
from ssd_protos.ssd.v1 import ssd_pb2 as pb

SOURCE = Path(ssd_protos.__file__).parent.parent / "ssd/v1/ssd.proto"


def test_the_generated_code_is_current():
    assert generate.main(["--check"]) == 0


def test_stale_code_is_noticed(monkeypatch, tmp_path, capsys):
    (tmp_path / "ssd/v1").mkdir(parents=True)
    (tmp_path / "ssd/v1/ssd_pb2.py").write_text("old")
    monkeypatch.setattr(generate, "PACKAGE", tmp_path)
    assert generate.main(["--check"]) == 1
    assert "ssd/v1/ssd_pb2.py" in capsys.readouterr().err
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0


def test_an_installed_package_says_that_it_has_no_sources(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(generate, "SOURCES", tmp_path)
    assert generate.main([]) == 1
    assert "checkout" in capsys.readouterr().err


def test_every_field_of_the_wire_is_commented():
    lines = SOURCE.read_text().splitlines()
    for before, line in itertools.pairwise(lines):
        if re.match(r"\s*(repeated )?\w+ \w+ = \d+;|\s*[A-Z_]+ = \d+;|\s*rpc |(message|enum|service) ", line):
            assert before.strip().startswith("//"), line


@pytest.mark.parametrize("vocab", [2, 256, 65_536, 65_537, 128_256])
def test_ids_are_little_endian_and_as_narrow_as_the_vocabulary_allows(vocab):
    assert id_bytes(vocab) == (2 if vocab <= 65_536 else 4)
    ids = [0, 1, vocab - 1]
    data = pack_ids(ids, vocab)
    assert data == b"".join(i.to_bytes(id_bytes(vocab), "little") for i in ids)
    assert unpack_ids(data, vocab).tolist() == ids
    for wrong in ([vocab], [-1]):
        with pytest.raises(PackingError):
            pack_ids(wrong, vocab)
    with pytest.raises(PackingError):
        unpack_ids(data[:-1], vocab)


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_flags_go_there_and_back(flags):
    data = pack_flags(flags)
    assert unpack_flags(data, len(flags)).tolist() == flags
    assert all(bool(data[i // 8] >> (i % 8) & 1) == flag for i, flag in enumerate(flags))
    with pytest.raises(PackingError):
        unpack_flags(data + b"\0", len(flags))
    if len(flags) % 8:
        with pytest.raises(PackingError):
            unpack_flags(data[:-1] + bytes([data[-1] | 0x80]), len(flags))


@given(st.lists(st.sets(st.integers(0, 299), min_size=1, max_size=6), min_size=1, max_size=9))
def test_sets_go_there_and_back(sets):
    rows = [sorted(s) for s in sets]
    flat, counts = [i for row in rows for i in row], [len(row) for row in rows]
    ids, offsets = unpack_sets(pack_ids(flat, 300), pack_counts(counts), positions=len(rows), vocab=300, max_set_ids=6)
    assert [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)] == rows
    assert (pack_counts(counts) == b"") == all(len(row) == 1 for row in rows)


@pytest.mark.parametrize(
    ("ids", "counts", "words"),
    [([1, 2], [2, 0], "between 1"), ([1, 2, 3], [3], "bytes of counts"), ([2, 1], [2], "rise"), ([1, 1], [2], "rise"),
     ([1, 2, 3], [2, 2], "the counts say"), ([1, 2, 3, 4, 5], [4, 1], "between 1 and 3")],
)  # fmt: skip
def test_wrong_sets_are_refused(ids, counts, words):
    positions = 1 if words == "rise" else 2
    with pytest.raises(PackingError, match=words):
        unpack_sets(
            pack_ids(ids, 256), np.array(counts, "<u2").tobytes(), positions=positions, vocab=256, max_set_ids=3
        )


@pytest.mark.parametrize(("vocab", "block", "context"), [(256, 8, 128), (49_152, 32, 8192), (128_256, 64, 32_768)])
def test_bounds_hold_the_largest_right_messages_and_not_much_more(vocab, block, context):
    limits = Limits.of(vocab=vocab, max_block=block, max_context=context)
    top = vocab - 1
    step = pb.Step(index=limits.max_passes - 1, w_hat=pack_ids([top] * block, vocab),
                   accepted=pack_flags([True] * block), k=top)  # fmt: skip
    opened = pb.Open(prompt_ids=pack_ids([top] * context, vocab), model_id="m" * 200, tokenizer_fingerprint="f" * 64,
                     history=[step] * limits.max_passes)  # fmt: skip
    size = pb.DenoiseStepRequest(open=opened, step=step).ByteSize()
    assert size <= limits.max_request_bytes < 2 * size + 2_000_000
    dense = pb.StepResult(logits=pb.Logits(shape=[block, vocab], data=bytes(4 * block * vocab)))
    assert dense.ByteSize() <= limits.max_response_bytes < 2 * dense.ByteSize() + 200_000
    options = dict(channel_options(max_send_bytes=5, max_receive_bytes=7))
    assert (options["grpc.max_send_message_length"], options["grpc.max_receive_message_length"]) == (5, 7)
