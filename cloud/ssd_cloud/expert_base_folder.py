"""OUT of `ssd-cloud expert-base`: what may lie there, for which run its checkpoint is, and how the model comes into it.

The model is put together beside its place and moved there file by file, `model.json` last: without that file a folder
is no model, so that a kill at any moment leaves one that is complete, or none. Knows nothing about vocabularies.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ssd_diffusion.engine import ModelSpec
from ssd_diffusion.models import folder
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.spec_file import SPEC_FILE, read_spec
from ssd_diffusion.training import data, loop

from ssd_cloud.adapt_options import AdaptOptions
from ssd_cloud.errors import UsageError

KIND = "expert base"
_RUN_FILE, _WRITING = "run.json", ".writing"
_MADE = ("*.json", "*.safetensors", "*.jinja", "loss.png")


def check(out: Path) -> None:
    """Refuse a place that holds anything but an earlier expert base or the beginnings of one.

    Raises:
        UsageError: it does.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"{out} is a file; name a folder that is new or empty")
    ours = (out / _WRITING).is_dir() or (out / "training" / _RUN_FILE).is_file()
    if any(out.iterdir()) and not ours and read(out / folder.CARD_FILE, "kind") != KIND:
        raise UsageError(f"{out} holds something else than an expert base; name a folder that is new or empty")


def claim(training: AdaptOptions, source: str, fingerprint: str, learned: Sequence[data.Item]) -> None:
    """Note in OUT/training for which run its checkpoint is; without `resume` an earlier one is dropped.

    Args:
        training: how it is trained.
        source: which model it starts from.
        fingerprint: of the new vocabulary.
        learned: what it is trained on.

    Raises:
        UsageError: the checkpoint there is another run's.
    """
    run = {
        "source": source, "vocabulary": fingerprint, "rank": training.rank, "block": training.block,
        "length": training.length, "rows": training.rows, "seed": training.seed, "accumulate": training.accumulate,
        "learning_rate": training.learning_rate, "data": hashlib.sha256(json.dumps(learned).encode()).hexdigest(),
    }  # fmt: skip
    path = training.out / "training" / _RUN_FILE
    if not training.resume:
        shutil.rmtree(path.parent, ignore_errors=True)
    elif path.is_file() and (other := [key for key, value in run.items() if read(path, key) != value]):
        raise UsageError(
            f"{path.parent} is of a run with another {' and '.join(other)}; give --no-resume to start anew, or name "
            "another folder to make"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.tmp")
    scratch.write_text(json.dumps(run, indent=1) + "\n")
    scratch.replace(path)


def write(
    model: Ssd2Model, out: Path, source: Path, tokenizer: Path, card: dict[str, Any], report: loop.TrainReport | None
) -> ModelSpec:
    """Write the model, in the dtype, with the step grid and for the contexts of its source.

    Args:
        model: in the new vocabulary; adapters are merged.
        out: the folder to make.
        source: the folder of the model that it comes from.
        tokenizer: a folder with the new tokenizer.
        card: what it is, for people; its `name` is the model's.
        report: how training went, for a picture of it.
    """
    scratch = out / _WRITING
    shutil.rmtree(scratch, ignore_errors=True)
    kept: dict[str, Any] = {}
    if (source / SPEC_FILE).is_file():
        spec = read_spec(source)
        kept = {"grid": spec.grid, "max_context": spec.max_context}
    dtype = torch.bfloat16 if read(source / "config.json", "dtype", "torch_dtype") == "bfloat16" else torch.float32
    made = folder.save(model.cpu().to(dtype), scratch, name=card["name"], tokenizer=tokenizer, card=card, **kept)
    if report is not None:
        loop.plot(scratch / "loss.png", report.history)
    _move(scratch, out)
    return made


def read(path: Path, *keys: str) -> Any:
    """The first of some keys that a JSON object in a file has; None where there is no such file, object or key."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return next((found[key] for key in keys if key in found), None) if isinstance(found, dict) else None


def _move(scratch: Path, out: Path) -> None:
    """Put finished files in the place of an earlier model's."""
    earlier = [path for path in out.iterdir() if any(path.match(pattern) for pattern in _MADE)]
    for path in sorted(earlier, key=lambda p: p.name != SPEC_FILE):
        path.unlink()
    for path in sorted(scratch.iterdir(), key=lambda p: p.name == SPEC_FILE):
        path.replace(out / path.name)
    scratch.rmdir()
