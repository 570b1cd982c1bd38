"""Which models this machine can serve, and loading one into an engine. Imports torch only when a model is loaded.

Knows names and folders; nothing about sessions or sockets.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from ssd_diffusion.engine import Engine
from ssd_diffusion.errors import InvalidModel
from ssd_diffusion.home import models_dir
from ssd_diffusion.ssdlm import BlockState
from ssd_diffusion.window import Window, WindowState

from ssd_cloud.errors import StartError

PACKAGED = "smollm2-135m-ssd2"
_PACKAGED_NAMES = frozenset({"packaged", PACKAGED})
_TINY = "tiny-random"


@dataclass(frozen=True, slots=True)
class Listed:
    """A model as `ssd-cloud models` shows it. `ready` is False where the first start still converts it."""

    name: str
    path: str
    ready: bool
    model_id: str = ""
    family: str = ""
    vocab: int = 0
    max_block: int = 0
    max_context: int = 0


def listed(home: Path) -> list[Listed]:
    """The packaged model and every model folder under HOME/models."""
    folder = models_dir(home)
    found = [_describe(p) for p in sorted(folder.iterdir()) if (p / "model.json").is_file()]
    if PACKAGED not in {one.name for one in found}:
        found.insert(0, Listed(PACKAGED, str(folder / PACKAGED), ready=False))
    return found


def resolve(name: str, home: Path) -> Path:
    """The folder of a model by name or path; the packaged one is converted at first use.

    Raises:
        StartError: there is no such model.
        InvalidModel: the packaged model cannot be converted.
    """
    if name in _PACKAGED_NAMES:
        from ssd_diffusion.packaged import ensure

        return ensure(home)
    if name == _TINY:
        from ssd_diffusion.models.tiny import write_tiny

        return write_tiny(models_dir(home) / _TINY)
    for path in (Path(name).expanduser(), models_dir(home) / name):
        if (path / "model.json").is_file():
            return path
    raise StartError(f"there is no model {name!r}; give a model folder, or a name that `ssd-cloud models` lists")


def load(path: Path, *, slots: int, batch_width: int, threads: int | None) -> Engine:
    """Load a model folder into an engine and try one pass.

    Args:
        path: model folder.
        slots: how many slots.
        batch_width: rows of a batch.
        threads: CPU threads; None leaves torch's choice.

    Raises:
        InvalidModel: the folder is not what it should be, or its weights give no finite logits.
    """
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    engine = _engine(path, slots, batch_width)
    try_one_pass(engine)
    return engine


def _engine(path: Path, slots: int, batch_width: int) -> Engine:
    if _read_spec(path).get("family") == "ssdlm":
        from ssd_diffusion.models import ssdlm_checkpoint
        from ssd_diffusion.models.ssdlm_engine import SsdlmEngine

        ssdlm, spec = ssdlm_checkpoint.load_folder(path)
        return SsdlmEngine(ssdlm, spec, slots=slots)
    from ssd_diffusion.models import folder
    from ssd_diffusion.models.engine import TorchEngine

    model, spec = folder.load(path)
    return TorchEngine(model, spec, slots=slots, batch_width=batch_width)


def try_one_pass(engine: Engine) -> None:
    """Run one window and drop it: broken weights show here, and compiled kernels are ready for the first caller.

    Raises:
        InvalidModel: the logits are not finite or have the wrong shape.
    """
    spec = engine.spec
    begin = BlockState.begin if spec.family == "ssdlm" else WindowState.begin
    block = min(spec.max_block, spec.max_context - 1)
    window: Window = begin(grid=spec.grid, noise_key=0, block=block, limit=block).window()
    engine.prefill([0], [np.zeros(1, np.int32)])
    logits = engine.step([0], [window])[0]
    engine.release([0])
    if logits.shape != (block, spec.vocab) or not np.isfinite(logits).all():
        raise InvalidModel(
            f"the model {spec.model_id} gives no usable logits; its weights are damaged, fetch them again"
        )


def _read_spec(path: Path) -> dict[str, object]:
    try:
        spec = json.loads((path / "model.json").read_text())
    except (OSError, ValueError) as error:
        raise InvalidModel(f"{path / 'model.json'} cannot be read; fetch the model again") from error
    if not isinstance(spec, dict):
        raise InvalidModel(f"{path / 'model.json'} does not describe a model; fetch the model again")
    return cast(dict[str, object], spec)


def _describe(path: Path) -> Listed:
    try:
        spec = _read_spec(path)
        return Listed(
            name=path.name, path=os.fspath(path), ready=True, model_id=str(spec["model_id"]),
            family=str(spec["family"]), vocab=int(str(spec["vocab"])), max_block=int(str(spec["max_block"])),
            max_context=int(str(spec["max_context"])),
        )  # fmt: skip
    except (InvalidModel, KeyError, ValueError):
        return Listed(path.name, os.fspath(path), ready=False)
