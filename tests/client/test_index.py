"""The index: ranks against a slow BM25 and plain dot products, only changed documents embedded, any text a query."""

from __future__ import annotations

import hashlib
import json
import math
import re
import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from ssd_client.documents import Document
from ssd_client.errors import IndexFault
from ssd_client.index import Encoder, Index, find_encoder
from ssd_client.index.search import fts_query
from ssd_kernels.types import F32


class Bags:
    """A stand-in encoder: hashed words, unit length; counts what it is asked."""

    def __init__(self, name: str = "bags@1", dimensions: int = 64) -> None:
        self.id, self.dimensions = name, dimensions
        self.texts: list[str] = []

    def embed(self, texts: Sequence[str]) -> F32:
        self.texts += texts
        out = np.full((len(texts), self.dimensions), 1e-3, np.float32)
        for row, text in zip(out, texts, strict=True):
            for word in re.findall(r"\w+", text.lower()):
                row[int(hashlib.sha256(word.encode()).hexdigest(), 16) % self.dimensions] += 1
        unit: F32 = (out / np.linalg.norm(out, axis=1, keepdims=True)).astype(np.float32)
        return unit


def document(path: str, text: str) -> Document:
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Document(
        id=f"{path}:{digest}", path=path, title=path.upper(), text=text, sha256=digest, mtime=0, format="text"
    )


DOCUMENTS = [
    document("keys", "The spare key hangs in the boat house.\n\nAsk Ada for the code of the gate."),
    document("food", "Lunch is at noon. Soup on Mondays, bread every day."),
    document("trips", "The boat leaves the harbour at nine. The gate closes at ten."),
    document("cafe", "Le café est fermé."),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with Index.create(tmp_path / "ix", Bags()) as index:
        index.update(DOCUMENTS, max_chars=45)
    return tmp_path / "ix"


def bm25_order(query: str, rows: list[str]) -> list[int]:
    """Okapi BM25 from its equation (k1 = 1.2, b = .75), for texts whose words need no stemming."""
    bags = [re.findall(r"\w+", one.lower()) for one in rows]
    mean = sum(map(len, bags)) / len(bags)
    scores = np.zeros(len(rows))
    for word in set(re.findall(r"\w+", query.lower())):
        has = sum(word in bag for bag in bags)
        idf = max(math.log((len(bags) - has + 0.5) / (has + 0.5)), 1e-6)
        for i, bag in enumerate(bags):
            f = Counter(bag)[word]
            scores[i] += idf * f * 2.2 / (f + 1.2 * (0.25 + 0.75 * len(bag) / mean))
    return [int(i) for i in np.lexsort((np.arange(len(rows)), -scores)) if scores[i] > 0]


def test_words_rank_as_bm25(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vocabulary = [a + b for a in "bcdfg" for b in ("ax", "ox", "ux", "ix")]
    texts = [" ".join(rng.choice(vocabulary, size=int(rng.integers(5, 15)))) for _ in range(40)]
    with Index.create(tmp_path, None) as index:
        index.update([replace(document(f"{i:02}", text), title="") for i, text in enumerate(texts)])
        for query in ("bax", "bax cox dux", "fix gux box dax"):
            found = index.search(query, 40)
            assert found.retrievers == ("bm25",)
            assert [int(one.path) for one in found.passages] == bm25_order(query, texts)


def test_both_retrievers_are_joined_by_rank(folder: Path) -> None:
    encoder = Bags()
    with Index.open(folder, encoder) as index, Index.open(folder, None) as words:
        query = "when does the gate close"
        found = index.search(query, 10)
        assert found.retrievers == ("bm25", "vectors")
        passages = list(index.passages())
        scores = encoder.embed([one.full_text for one in passages]) @ encoder.embed([query])[0]
        by_vector = {(passages[i].path, passages[i].start): rank for rank, i in enumerate(np.argsort(-scores), start=1)}
        by_word = {(one.path, one.start): rank for rank, one in enumerate(words.search(query, 10).passages, start=1)}
        for one in found.passages:
            key = (one.path, one.start)
            assert one.ranks["vectors"] == by_vector[key]
            assert one.ranks.get("bm25") == by_word.get(key)
            assert one.score == pytest.approx(sum(1 / (60 + rank) for rank in one.ranks.values()))
        assert [one.score for one in found.passages] == sorted((one.score for one in found.passages), reverse=True)
        assert found.passages[0].path == "trips"
        assert len(index.search(query, 2).passages) == 2
        assert index.search(query, 0).passages == ()


def test_passages_say_where_they_come_from(folder: Path) -> None:
    with Index.open(folder, None) as index:
        (one,) = index.search("soup", 3).passages
        assert (one.path, one.title, one.full_text) == ("food", "FOOD", f"FOOD: {one.text}")
        assert DOCUMENTS[1].text[one.start : one.end] == one.text
        assert index.search("CAFÉ", 3).passages[0].path == "cafe"
        assert index.search("cafe", 3).passages[0].path == "cafe"
        assert index.search("hanging", 3).passages[0].path == "keys"


def test_only_changed_documents_are_embedded(tmp_path: Path) -> None:
    encoder = Bags()
    seen: list[tuple[int, int]] = []
    with Index.create(tmp_path, encoder) as index:
        first = index.update(DOCUMENTS, progress=lambda done, total: seen.append((done, total)))
        assert (first.added, first.removed, first.embedded) == (4, 0, first.passages)
        assert seen[-1] == (first.embedded, first.embedded)
        encoder.texts.clear()
        assert index.update(DOCUMENTS).embedded == 0
        assert encoder.texts == []
        changed = [DOCUMENTS[0], document("food", "Dinner is at seven."), *DOCUMENTS[2:3]]
        second = index.update(changed)
        assert (second.added, second.removed, second.embedded) == (1, 2, 1)
        assert encoder.texts == ["FOOD: Dinner is at seven."]
        assert {one.path for one in index.passages()} == {"keys", "food", "trips"}
        assert index.search("soup lunch noon", 9).passages[0].ranks.get("bm25") is None
    with Index.open(tmp_path, encoder) as index:
        assert index.search("dinner seven", 1).passages[0].text == "Dinner is at seven."
        assert set(index.search("dinner seven", 1).passages[0].ranks) == {"bm25", "vectors"}
    assert len(list(tmp_path.glob("*.npy"))) == 1


def test_another_encoder_embeds_everything_again(folder: Path) -> None:
    other = Bags("bags@2", 32)
    with Index.open(folder, other) as index:
        assert index.search("gate").retrievers == ("bm25",)
    with Index.create(folder, other) as index:
        result = index.update(DOCUMENTS, max_chars=45)
        assert (result.added, result.embedded) == (0, result.passages)
        assert index.search("gate").retrievers == ("bm25", "vectors")
    with Index.create(folder, None) as index:
        assert index.update(DOCUMENTS).embedded == 0
        assert index.search("gate").retrievers == ("bm25",)
    assert not list(folder.glob("*.npy"))


class Dies(Bags):
    def embed(self, texts: Sequence[str]) -> F32:
        if self.texts:
            raise KeyboardInterrupt
        return super().embed(texts)


def test_an_interrupted_update_goes_on(folder: Path) -> None:
    many = [*DOCUMENTS[1:], *(document(f"n{i}", f"Note {i} about the gate.") for i in range(100))]
    with Index.create(folder, Dies()) as index, pytest.raises(KeyboardInterrupt):
        index.update(many, max_chars=45)
    with Index.open(folder, Bags()) as index:  # searchable in between: old vectors, new words
        found = index.search("gate note", 200)
        assert found.retrievers == ("bm25", "vectors")
        assert "keys" not in {one.path for one in found.passages}
    encoder = Bags()
    with Index.create(folder, encoder) as index:
        result = index.update(many, max_chars=45)
        assert 0 < result.embedded < 100
        assert all(set(one.ranks) <= {"bm25", "vectors"} for one in index.search("gate", 200).passages)
        assert len([one for one in index.search("gate", 200).passages if "vectors" in one.ranks]) == result.passages


def test_export_is_small_and_complete(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "expert"
    target.mkdir()
    with Index.create(folder, Bags()) as index:
        before = index.search("gate", 9)
        index.export(target)
    assert sorted(one.name for one in target.iterdir()) == ["index.sqlite", "vectors.npy"]
    for file in target.iterdir():
        file.chmod(0o400)
    with Index.open(target, Bags()) as index:
        assert index.search("gate", 9) == before
    with sqlite3.connect(target / "index.sqlite") as db:
        assert db.execute("SELECT COUNT(*) FROM computed").fetchone() == (0,)
    db.close()


@given(st.text(max_size=60))
def test_any_text_is_a_query(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    for query in (text, f'" OR {text} NEAR(* ^ -: {{}} AND NOT "', text + "\0" + text):
        assert isinstance(_shared(tmp_path_factory).search(query, 3).passages, tuple)


_SHARED: list[Index] = []


def _shared(factory: pytest.TempPathFactory) -> Index:
    if not _SHARED:
        index = Index.create(factory.mktemp("shared"), None)
        index.update(DOCUMENTS)
        _SHARED.append(index)
    return _SHARED[0]


@pytest.fixture(scope="module", autouse=True)
def _close_shared() -> object:
    yield
    while _SHARED:
        _SHARED.pop().close()


def test_queries_are_quoted_words() -> None:
    assert fts_query('key AND "gate" key') == '"key" OR "and" OR "gate"'
    assert fts_query("'; DROP TABLE words; --") == '"drop" OR "table" OR "words"'
    assert fts_query("?! ... __") == ""
    assert fts_query("\ud800") == ""
    assert fts_query(" ".join(f"w{i}" for i in range(500))).count(" OR ") == 63


def test_an_empty_query_finds_nothing(folder: Path) -> None:
    with Index.open(folder, Bags()) as index:
        assert index.search("  ").passages == ()
        assert index.search("").passages == ()


@pytest.mark.parametrize("damage", ["absent", "garbage", "version", "no vectors", "short vectors", "other vectors"])
def test_damaged_indexes_are_refused(folder: Path, damage: str) -> None:
    path, vectors = folder / "index.sqlite", next(folder.glob("*.npy"))
    match damage:
        case "absent":
            path.unlink()
        case "garbage":
            path.write_bytes(b"garbage" * 1000)
        case "version":
            with sqlite3.connect(path) as db:
                db.execute("PRAGMA user_version = 9")
            db.close()
        case "no vectors":
            vectors.unlink()
        case "short vectors":
            vectors.write_bytes(vectors.read_bytes()[:-8])
        case "other vectors":
            np.save(vectors, np.zeros((2, 64), np.float32))
    with pytest.raises(IndexFault, match="personalize again"):
        Index.open(folder, Bags())
    if damage in ("garbage", "version"):
        with pytest.raises(IndexFault):
            Index.create(folder, Bags())


def test_a_busy_index_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssd_client.index.search._WAIT_S", 0.05)
    with sqlite3.connect(folder / "index.sqlite", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(IndexFault, match="is in use"):
            Index.create(folder, None)
    other.close()


def test_encoder_folders_that_are_not(tmp_path: Path) -> None:
    assert find_encoder(tmp_path / "home") is None
    (tmp_path / "home" / "models" / "encoder").mkdir(parents=True)
    with pytest.raises(IndexFault, match="cannot be read"):
        find_encoder(tmp_path / "home")
    with pytest.raises(IndexFault, match="cannot be read"):
        Encoder.load(tmp_path)
    card = {"format": 1, "name": "x", "dimensions": 2, "max_tokens": 8, "sha256": "0"}
    for bad, message in (
        ({**card, "format": 2}, "another version"),
        ({**card, "name": 3}, "damaged"),
        (card, "personalize"),
    ):
        (tmp_path / "encoder.json").write_text(json.dumps(bad))
        with pytest.raises(IndexFault, match=message):
            Encoder.load(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(IndexFault, match="not the file it was"):
        Encoder.load(tmp_path, verify=True)
    with pytest.raises(IndexFault, match="remove the folder and personalize again"):
        Encoder.load(tmp_path)


def tiny_encoder(folder: Path, dimensions: int = 4) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """An encoder folder: a word-level tokenizer, and a graph of embedding, masked mean and unit length. The table."""
    onnx = pytest.importorskip("onnx")
    words = ["[UNK]", *"abcdefgh"]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    table = np.random.default_rng(0).standard_normal((len(words), dimensions)).astype(np.float32)
    node, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    integers, floats = onnx.TensorProto.INT64, onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [
            node("Gather", ["table", "input_ids"], ["rows"]),
            node("Cast", ["attention_mask"], ["mask"], to=floats),
            node("Unsqueeze", ["mask", "last"], ["weight"]),
            node("Mul", ["rows", "weight"], ["kept"]),
            node("ReduceSum", ["kept", "middle"], ["sum"], keepdims=0),
            node("LpNormalization", ["sum"], ["vectors"], axis=1, p=2),
        ],
        "tiny",
        [value("input_ids", integers, ["n", "l"]), value("attention_mask", integers, ["n", "l"])],
        [value("vectors", floats, ["n", dimensions])],
        [
            onnx.numpy_helper.from_array(table, "table"),
            onnx.numpy_helper.from_array(np.array([2]), "last"),
            onnx.numpy_helper.from_array(np.array([1]), "middle"),
        ],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    digest = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    card = {"format": 1, "name": "tiny", "dimensions": dimensions, "max_tokens": 3, "sha256": digest}
    (folder / "encoder.json").write_text(json.dumps(card))
    return table


def test_an_encoder_pads_cuts_and_keeps_the_order(tmp_path: Path) -> None:
    table = tiny_encoder(tmp_path)
    encoder = Encoder.load(tmp_path, verify=True)
    assert encoder.id.startswith("tiny@")
    assert encoder.token_ids("a c e g") == [1, 3, 5]
    texts = ["a b", "c", "d e f g", "h \ud800"] * 9
    sums = [table[[1, 2]].sum(0), table[3], table[[4, 5, 6]].sum(0), table[8] + table[0]] * 9
    expected = np.array([one / np.linalg.norm(one) for one in sums])
    np.testing.assert_allclose(encoder.embed(texts), expected, atol=1e-6)
    assert encoder.embed([]).shape == (0, 4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_packaged_encoder_exported(tmp_path: Path) -> None:
    export = pytest.importorskip("ssd_client.personalize.encoder_export")
    if export.packaged_encoder() is None:
        pytest.skip("the packaged encoder is not installed")
    encoder = export.ensure_encoder(tmp_path)
    assert (encoder.dimensions, encoder.max_tokens) == (384, 256)
    assert encoder.id == export.ensure_encoder(tmp_path).id == find_encoder(tmp_path).id  # type: ignore[union-attr]
    assert Encoder.load(tmp_path / "models" / "encoder", verify=True).id == encoder.id
    vectors = encoder.embed(["a boat on the water", "a ship at sea", "the price of bread", ""])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2
    alone = np.concatenate([encoder.embed([text]) for text in ("a ship at sea", "a boat on the water")])
    np.testing.assert_allclose(alone, vectors[[1, 0]], atol=1e-5)
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    source = export.packaged_encoder()
    tokenizer, model = (
        transformers.AutoTokenizer.from_pretrained(source),
        transformers.AutoModel.from_pretrained(source),
    )
    with torch.inference_mode():
        inputs = tokenizer(["a boat on the water"], return_tensors="pt")
        mean = model.eval()(**inputs).last_hidden_state[0].mean(0).double()
    np.testing.assert_allclose(vectors[0], (mean / mean.norm()).numpy(), atol=1e-5)
    with Index.create(tmp_path / "ix", encoder) as index:
        index.update(DOCUMENTS)
        best = index.search("what do we eat", 1).passages[0]
        assert (best.path, best.ranks) == ("food", {"vectors": 1})
    (tmp_path / "models" / "encoder" / "model.onnx").write_bytes(b"")
    with pytest.raises(IndexFault):
        export.ensure_encoder(tmp_path)
