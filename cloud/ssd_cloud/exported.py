"""A core as a graph for onnxruntime: on a CPU several times as quick as torch. Made at the first start, kept after.

The folder HOME/exports/NAME@HASH holds the float32 graph, checked against the torch model that it was made from. Knows
files and when they are stale; nothing about sessions.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ssd_diffusion.engine import ModelSpec
from ssd_diffusion.errors import InvalidModel
from ssd_diffusion.once import make_once
from ssd_diffusion.onnx_engine import ONNX_DIR, OnnxEngine
from ssd_diffusion.spec_file import write_spec

if TYPE_CHECKING:
    from ssd_diffusion.models.ssd2 import Ssd2Model

VERSION = 1
"""Goes up when the graph itself changes."""
_STAMP = "export.json"


class NotExported(Exception):
    """Why a model stays with torch: its architecture is not known to the export, or the graph says something else."""


def folder_of(spec: ModelSpec, root: Path) -> Path:
    """Where the graph of a model lies under a home folder."""
    return root / "exports" / "".join(c if c.isalnum() or c in "@._-" else "_" for c in spec.model_id)


def is_current(target: Path) -> bool:
    """Whether a whole graph of this version is there."""
    try:
        return bool(json.loads((target / _STAMP).read_text())["version"] == VERSION)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def ensure(model: Ssd2Model, spec: ModelSpec, root: Path) -> Path:
    """The folder with the graph of a model, written where it is not there; graphs of its older weights go.

    Args:
        model: on the CPU; turned into float32 and evaluation mode in place.
        spec: what the model is.
        root: the home folder.

    Raises:
        NotExported: the architecture is unknown to the export, or the graph does not agree with the model.
        OSError: the files cannot be written.
    """
    from ssd_diffusion.export.graph import can_build

    if not can_build(model):
        raise NotExported("its architecture has no graph for onnxruntime")
    target = folder_of(spec, root)
    make_once(
        target, current=lambda: is_current(target), build=lambda scratch: _build(model, spec, scratch),
        what=f"the graph of {spec.model_id}",
    )  # fmt: skip
    for old in target.parent.glob(f"{target.name.split('@')[0]}@*"):
        if old != target and is_current(old):
            shutil.rmtree(old, ignore_errors=True)
    return target


def _build(model: Ssd2Model, spec: ModelSpec, scratch: Path) -> None:
    from ssd_diffusion.export.agreement import check_agreement
    from ssd_diffusion.export.onnx import export

    export(model, scratch / ONNX_DIR)
    found = check_agreement(model, scratch / ONNX_DIR)
    if not found.ok:
        raise NotExported(f"the graph is {found.rms_error:.2g} nats off the model")
    write_spec(scratch, spec)
    (scratch / _STAMP).write_text(json.dumps({"version": VERSION, "model": spec.model_id}) + "\n")


def open_graph(target: Path, *, slots: int, threads: int | None) -> OnnxEngine | None:
    """An engine on a current graph; None, and the folder is removed, where it is not current or damaged."""
    if not is_current(target):
        return None
    try:
        return OnnxEngine(target, slots=slots, threads=threads or 0)
    except InvalidModel:
        shutil.rmtree(target, ignore_errors=True)
        return None
