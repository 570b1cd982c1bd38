"""`model.json`: the spec of a model as it lies in its folder. Needs no torch; knows nothing about weights."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssd_diffusion.engine import Family, ModelSpec
from ssd_diffusion.errors import InvalidModel

SPEC_FILE = "model.json"
FORMAT = 1
_CHUNK_BYTES = 1 << 20


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
        if spec.family not in typing.get_args(Family) or min(spec.vocab, spec.hidden, spec.max_block) < 1:
            raise ValueError("impossible values")
    except FileNotFoundError as error:
        raise InvalidModel(f"{folder} holds no model; name a folder with {SPEC_FILE} in it") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidModel(f"{path} is not a model card of this version ({one_line(error)}); fetch it again") from error
    return spec


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


def one_line(error: BaseException) -> str:
    """The first line of an error, short enough to show."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
