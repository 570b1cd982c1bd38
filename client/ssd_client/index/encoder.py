"""Sentence vectors from a small encoder, run by onnxruntime: no torch.

The folder holds model.onnx (input_ids, attention_mask [n, L] -> unit vectors [n, D]), tokenizer.json and encoder.json
({"format": 1, "name", "dimensions", "max_tokens", "sha256": of model.onnx}). Knows nothing about passages or storage.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ssd_kernels.types import F32

from ssd_client.errors import IndexFault
from ssd_client.store import file_sha256

FORMAT = 1
MODEL_FILE, TOKENIZER_FILE, CARD_FILE = "model.onnx", "tokenizer.json", "encoder.json"
_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Text to unit vectors.

    Attributes:
        id: "NAME@HASH": vectors of encoders with another id cannot be compared.
        dimensions: D.
        max_tokens: longer texts are cut there.
    """

    id: str
    dimensions: int
    max_tokens: int
    _session: Any = field(repr=False)
    _tokenizer: Any = field(repr=False)

    @staticmethod
    def load(folder: Path, *, threads: int = 2, verify: bool = False) -> Encoder:
        """The encoder in a folder.

        Args:
            folder: see the module's first lines.
            threads: threads of one pass.
            verify: hash the model and compare with encoder.json.

        Raises:
            IndexFault: a file is missing, damaged or of another version.
        """
        card = _card(folder)
        if verify and file_sha256(folder / MODEL_FILE) != card["sha256"]:
            raise _fault(folder, "model.onnx is not the file it was")
        import onnxruntime
        import tokenizers

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            session = onnxruntime.InferenceSession(
                str(folder / MODEL_FILE), options, providers=["CPUExecutionProvider"]
            )
            tokenizer = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        except Exception as error:  # both packages raise many kinds for damaged files
            raise _fault(folder, str(error).splitlines()[0] if str(error) else type(error).__name__) from error
        tokenizer.no_padding()
        tokenizer.enable_truncation(int(card["max_tokens"]))
        return Encoder(
            id=f"{card['name']}@{card['sha256'][:16]}",
            dimensions=int(card["dimensions"]),
            max_tokens=int(card["max_tokens"]),
            _session=session,
            _tokenizer=tokenizer,
        )

    def embed(self, texts: Sequence[str]) -> F32:
        """Unit vectors [n, D], in the order of the texts."""
        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch(clean)]
        vectors = np.zeros((len(ids), self.dimensions), np.float32)
        by_length = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        for start in range(0, len(ids), _BATCH):
            rows = by_length[start : start + _BATCH]
            vectors[rows] = self._run([ids[i] for i in rows])
        return vectors

    def token_ids(self, text: str) -> list[int]:
        """The ids the model is given for a text, cut to `max_tokens`."""
        return [int(one) for one in self._tokenizer.encode(text).ids]

    def _run(self, ids: list[list[int]]) -> F32:
        length = max(len(row) for row in ids)
        tokens = np.zeros((len(ids), length), np.int64)
        mask = np.zeros((len(ids), length), np.int64)
        for i, row in enumerate(ids):
            tokens[i, : len(row)] = row
            mask[i, : len(row)] = 1
        (vectors,) = self._session.run(None, {"input_ids": tokens, "attention_mask": mask})
        return np.asarray(vectors, dtype=np.float32)


def encoder_dir(home: Path) -> Path:
    """Where the encoder lies under a home folder, whether or not it is there yet."""
    return home / "models" / "encoder"


def find_encoder(home: Path, *, threads: int = 2) -> Encoder | None:
    """The encoder under a home folder, or None where none was made: retrieval is then by words alone.

    Raises:
        IndexFault: it is there and damaged.
    """
    folder = encoder_dir(home)
    return Encoder.load(folder, threads=threads) if folder.exists() else None


def _card(folder: Path) -> dict[str, Any]:
    try:
        card = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _fault(folder, f"{CARD_FILE} cannot be read") from error
    wanted = {"name": str, "dimensions": int, "max_tokens": int, "sha256": str}
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise _fault(folder, "it is of another version")
    if not all(isinstance(card.get(key), kind) for key, kind in wanted.items()):
        raise _fault(folder, f"{CARD_FILE} is damaged")
    return card


def _fault(folder: Path, why: str) -> IndexFault:
    return IndexFault(
        f"the sentence encoder in {folder} cannot be used ({why}); remove the folder and personalize again"
    )
