"""A core as a graph for onnxruntime: on a CPU several times as quick as torch. Made at the first start, kept after.

The folder HOME/exports/NAME@HASH holds the float32 graph, checked against the torch model that it was made from. Knows
files and when they are stale; nothing about sessions.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ssd_diffusion.engine import ModelSpec
from ssd_diffusion.errors import InvalidModel
from ssd_diffusion.graph_names import GRAPHS, ONNX_DIR, lanes_path
from ssd_diffusion.once import make_once
from ssd_diffusion.onnx_engine import OnnxEngine
from ssd_diffusion.spec_file import write_spec
from ssd_diffusion.window import StepRecord, WindowState
from ssd_kernels.types import TokenSets

if TYPE_CHECKING:
    from ssd_diffusion.models.ssd2 import Ssd2Model

_log = logging.getLogger("ssd_cloud.exported")

VERSION = 3
"""Goes up when the graph itself changes."""
LANES = 8
"""Sessions that share a run: more of them gain little over eight, and every lane costs a run that leaves it empty."""
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

    export(model, scratch / ONNX_DIR, lanes=LANES)
    found = check_agreement(model, scratch / ONNX_DIR)
    if not found.ok:
        raise NotExported(f"the graph is {found.rms_error:.2g} nats off the model")
    write_spec(scratch, spec)
    if not company_leaves_bits(scratch):
        lanes_path(scratch / ONNX_DIR / GRAPHS["fp32"]).unlink()
        _log.warning(
            "sessions of %s will compute one by one: on this processor they would change one another's last bits",
            spec.model_id,
        )
    (scratch / _STAMP).write_text(json.dumps({"version": VERSION, "model": spec.model_id}) + "\n")


def company_leaves_bits(folder: Path) -> bool:
    """Whether sessions that share runs get, to the bit, what each gets alone, on this processor.

    They do where a product's rows do not depend on how many there are, which is up to onnxruntime's kernels for it.
    """
    alone, together = OnnxEngine(folder, slots=LANES), OnnxEngine(folder, slots=LANES, batch_width=LANES)
    spec, slots = alone.spec, list(range(LANES))
    rng = np.random.default_rng(0)
    block = min(4, spec.max_block, spec.max_context - 1)
    states = [WindowState.begin(grid=spec.grid, noise_key=n, block=block, limit=64) for n in slots]
    contexts = [rng.integers(0, spec.vocab, 2 + 5 * n).astype(np.int32)[: spec.max_context - 2 * block] for n in slots]
    for engine in (alone, together):
        engine.prefill(slots, contexts)
    for number in range(2):
        windows = [state.window() for state in states]
        single = [alone.step([n], [windows[n]])[0] for n in slots]
        few = together.step(slots[: 2 + number], windows[: 2 + number])
        many = together.step(slots, windows)
        if any(not np.array_equal(a, b) for a, b in [*zip(single, few, strict=False), *zip(single, many, strict=True)]):
            return False
        ids = [TokenSets.single(rows.argmax(axis=-1).astype(np.int32)) for rows in single]
        moved = [s.advance(StepRecord(w, np.arange(block) < 1)) for s, w in zip(states, ids, strict=True)]
        states = [state for state, _ in moved]
        for engine in (alone, together):
            engine.commit(slots, [tokens for _, tokens in moved])
    return True


def open_graph(target: Path, *, slots: int, threads: int | None, batch_width: int | None = None) -> OnnxEngine | None:
    """An engine on a current graph; None, and the folder is removed, where it is not current or damaged."""
    if not is_current(target):
        return None
    try:
        return OnnxEngine(target, slots=slots, threads=threads or 0, batch_width=batch_width or LANES)
    except InvalidModel:
        shutil.rmtree(target, ignore_errors=True)
        return None
