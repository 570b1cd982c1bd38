"""`model.json`: the spec of a model as it lies in its folder. Needs no torch; knows nothing about weights."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssd_diffusion.engine import Family, ModelSpec
from ssd_diffusion.errors import InvalidModel

SPEC_FILE = "model.json"
FORMAT = 1
_CHUNK_BYTES = 1 << 20
_MAY_BE_0 = frozenset(("layers", "kv_heads", "head_dim"))
_LARGEST = {  # far beyond any model that is known, and well within what sizes are computed in
    "vocab": 1 << 24, "hidden": 1 << 20, "max_block": 1 << 16, "max_context": 1 << 24, "layers": 1 << 16,
    "kv_heads": 1 << 16, "head_dim": 1 << 16,
}  # fmt: skip


def read_spec(folder: Path) -> ModelSpec:
    """The spec of a model folder.

    Raises:
        InvalidModel: the file is missing, damaged, of another version, or describes nothing that can be.
    """
    path = folder / SPEC_FILE
    try:
        card: dict[str, Any] = json.loads(path.read_text())
        if card.pop("format") != FORMAT:
            raise ValueError("another format version")
        fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in card.items()}
        spec = ModelSpec(**fields)
        for name in (one.name for one in dataclasses.fields(spec) if not _can_be(spec, one.name)):
            raise ValueError(f"an impossible {name}")
    except FileNotFoundError as error:
        raise InvalidModel(f"{folder} holds no model; name a folder with {SPEC_FILE} in it") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidModel(f"{path} is not a model card of this version ({one_line(error)}); fetch it again") from error
    return spec


def _can_be(spec: ModelSpec, name: str) -> bool:
    """Whether a field holds what any model could have; the weights beside it are not looked at."""
    value = getattr(spec, name)
    if name in _LARGEST:
        return type(value) is int and (name in _MAY_BE_0 or value > 0) and 0 <= value <= _LARGEST[name]
    if name in ("simplex_k", "schedule_s"):
        return type(value) in (int, float) and 0 < value < math.inf
    if name == "grid":
        levels = [*value, 0.0] if isinstance(value, tuple) and all(type(u) in (int, float) for u in value) else [0.0]
        return levels[0] == 1.0 and all(left > right for left, right in itertools.pairwise(levels))
    if name == "eos_ids":
        return isinstance(value, tuple) and all(type(i) is int and 0 <= i < spec.vocab for i in value)
    if name == "family":
        return value in typing.get_args(Family)
    return isinstance(value, bool if name == "output_shift" else str)


def write_spec(folder: Path, spec: ModelSpec) -> None:
    """Write the spec into a model folder."""
    card = {"format": FORMAT, **dataclasses.asdict(spec)}
    (folder / SPEC_FILE).write_text(json.dumps(card, indent=1, sort_keys=True) + "\n")


def model_id(name: str, folder: Path, files: Sequence[str]) -> str:
    """ "NAME@HASH", the hash over the contents of the named files in order."""
    digest = hashlib.sha256()
    for part in files:
        with (folder / part).open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return f"{name}@{digest.hexdigest()[:16]}"


def check_files(folder: Path, spec: ModelSpec, files: Sequence[str]) -> None:
    """Compare the files with the hash in the model's id.

    Raises:
        InvalidModel: they were changed, damaged or exchanged since `model.json` was written.
    """
    name = spec.model_id.rpartition("@")[0]
    if model_id(name, folder, files) != spec.model_id:
        raise InvalidModel(
            f"{folder} holds other files than its {SPEC_FILE} was written for ({spec.model_id}); fetch the model again"
        )


def one_line(error: BaseException) -> str:
    """The first line of an error, short enough to show."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
