"""Which models this machine can serve, and loading one into an engine. Imports torch only when a model is loaded.

Knows names and folders; nothing about sessions or sockets.
"""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from ssd_diffusion.engine import Engine
from ssd_diffusion.errors import InvalidModel
from ssd_diffusion.home import models_dir
from ssd_diffusion.spec_file import read_spec
from ssd_diffusion.ssdlm import BlockState
from ssd_diffusion.window import Window, WindowState
from ssd_kernels.codec import CodecSpec, encode

from ssd_cloud import exported
from ssd_cloud.errors import StartError

_log = logging.getLogger("ssd_cloud.models")

Runtime = Literal["auto", "torch", "onnx"]
RUNTIMES: tuple[Runtime, ...] = ("auto", "torch", "onnx")
PACKAGED = "smollm2-135m-ssd2"
_PACKAGED_NAMES = frozenset({"packaged", PACKAGED})
_TINY = "tiny-random"
_GPU_DEVICES = ("/dev/nvidiactl", "/dev/nvmap", "/dev/kfd", "/dev/dxg")


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
    """Load a model folder into a torch engine and try one pass. On a GPU in bf16 where there is one, else in float32.

    Args:
        path: model folder.
        slots: how many slots.
        batch_width: rows of a batch.
        threads: CPU threads; None leaves torch's choice.

    Raises:
        InvalidModel: the folder is not what it should be, or its weights give no finite logits.
    """
    engine = _torch_engine(path, slots, batch_width, threads)
    try_one_pass(engine)
    return engine


def load_quickest(
    path: Path, root: Path, *, slots: int, batch_width: int | None, threads: int | None, runtime: Runtime = "auto"
) -> Engine:
    """Load a model folder into the engine that is quickest here: torch on a GPU, onnxruntime on a CPU.

    At the first start on a CPU the model's graph is written under `root` (`exported`). A model that has none stays with
    torch, and the log says why.

    Args:
        path: model folder.
        root: the home folder.
        slots, threads: as for `load`.
        batch_width: sessions that compute together; None for what is best for the engine (`usual_batch_width`).
        runtime: "torch" and "onnx" leave no choice.

    Raises:
        InvalidModel: as `load`.
        StartError: "onnx" was asked for, and the model has no graph.
    """
    if runtime == "torch" or (runtime == "auto" and _on_gpu()):
        return load(path, slots=slots, batch_width=batch_width or _padded_width(), threads=threads)
    spec = read_spec(path)
    target = exported.folder_of(spec, root)
    engine: Engine | None = exported.open_graph(target, slots=slots, threads=threads, batch_width=batch_width)
    if engine is None:
        engine = _first_graph(path, root, slots, batch_width, threads, required=runtime == "onnx")
    try_one_pass(engine)
    return engine


def _first_graph(
    path: Path, root: Path, slots: int, batch_width: int | None, threads: int | None, *, required: bool
) -> Engine:
    """Write the graph of a model and open it; the torch engine where that cannot be and is not required."""
    from ssd_diffusion.models.engine import TorchEngine

    plain = _torch_engine(path, slots, batch_width or 1, threads, gpu=False)
    why = "its family has no graph for onnxruntime"
    if isinstance(plain, TorchEngine):
        try:
            target = exported.ensure(plain.model, plain.spec, root)
            found = exported.open_graph(target, slots=slots, threads=threads, batch_width=batch_width)
            if found is not None:
                return found
            why = "the graph that was written cannot be opened"
        except (exported.NotExported, OSError) as error:
            why = str(error)
    if required:
        raise StartError(f"{path.name} cannot run on onnxruntime ({why}); take --engine auto")
    _log.warning("%s runs on torch, which is slower on a CPU: %s", path.name, why)
    return plain


def usual_batch_width(engine: Engine) -> int:
    """Most sessions that an engine computes together, as it was loaded; 1 for one that does not."""
    return int(getattr(engine, "batch_width", 1))


def _padded_width() -> int:
    """Rows of every pass of torch, which is padded to them: few on a CPU, where that is never free."""
    return 8 if _on_gpu() else 1


def _on_gpu() -> bool:
    """Whether torch has a GPU; torch, whose import takes seconds, is not asked where no driver is."""
    if sys.platform == "linux" and not any(Path(device).exists() for device in _GPU_DEVICES):
        return False
    import torch

    return torch.cuda.is_available()


def _torch_engine(path: Path, slots: int, batch_width: int, threads: int | None, *, gpu: bool = True) -> Engine:
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if threads is not None:
        torch.set_num_threads(threads)
    if read_spec(path).family == "ssdlm":
        from ssd_diffusion.models import ssdlm_checkpoint
        from ssd_diffusion.models.ssdlm_engine import SsdlmEngine

        ssdlm, spec = ssdlm_checkpoint.load_folder(path)
        return SsdlmEngine(ssdlm, spec, slots=slots)
    from ssd_diffusion.models import folder
    from ssd_diffusion.models.engine import TorchEngine

    on_gpu = gpu and _on_gpu()
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
    encode(logits, CodecSpec())


def _describe(path: Path) -> Listed:
    try:
        spec = read_spec(path)
    except InvalidModel:
        return Listed(path.name, os.fspath(path), ready=False)
    return Listed(
        name=path.name, path=os.fspath(path), ready=True, model_id=spec.model_id, family=spec.family,
        vocab=spec.vocab, max_block=spec.max_block, max_context=spec.max_context,
    )  # fmt: skip
