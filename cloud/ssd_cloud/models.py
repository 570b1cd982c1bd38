"""Which models this machine can serve, and loading one into an engine. Imports torch only when a model is loaded.

Knows names and folders; nothing about sessions or sockets.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ssd_diffusion.engine import Engine
from ssd_diffusion.errors import InvalidModel
from ssd_diffusion.home import models_dir
from ssd_diffusion.spec_file import read_spec
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
    named = [p for p in sorted(folder.iterdir()) if not p.name.startswith(".")]
    found = [_describe(p) for p in named if (p / "model.json").is_file()]
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
    """Load a model folder into an engine and try one pass. On a GPU in bf16 where there is one, else in float32.

    Args:
        path: model folder.
        slots: how many slots.
        batch_width: rows of a batch.
        threads: CPU threads; None leaves torch's choice.

    Raises:
        InvalidModel: the folder is not what it should be, or its weights give no finite logits.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if threads is not None:
        torch.set_num_threads(threads)
    engine = _engine(path, slots, batch_width)
    try_one_pass(engine)
    return engine


def usual_batch_width() -> int:
    """1 on a CPU, which a single window keeps busy; 8 on a GPU. Every pass is padded to it, so it is never free."""
    import torch

    return 8 if torch.cuda.is_available() else 1


def _engine(path: Path, slots: int, batch_width: int) -> Engine:
    if read_spec(path).family == "ssdlm":
        from ssd_diffusion.models import ssdlm_checkpoint
        from ssd_diffusion.models.ssdlm_engine import SsdlmEngine

        ssdlm, spec = ssdlm_checkpoint.load_folder(path)
        return SsdlmEngine(ssdlm, spec, slots=slots)
    import torch
    from ssd_diffusion.models import folder
    from ssd_diffusion.models.engine import TorchEngine

    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if on_gpu else torch.float32
    model, spec = folder.load(path, dtype=dtype, device="cuda" if on_gpu else "cpu")
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


def _describe(path: Path) -> Listed:
    try:
        spec = read_spec(path)
    except InvalidModel:
        return Listed(path.name, os.fspath(path), ready=False)
    return Listed(
        name=path.name, path=os.fspath(path), ready=True, model_id=spec.model_id, family=spec.family,
        vocab=spec.vocab, max_block=spec.max_block, max_context=spec.max_context,
    )  # fmt: skip
