"""A training state in one safetensors file: trainable weights, optimizer moments, best weights, and a JSON record.

One file, renamed into place, so that a kill at any moment leaves the old one or the new one. Knows nothing about what
is trained.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssd_diffusion.errors import TrainingError

NAME = "checkpoint.safetensors"


@dataclass(frozen=True, slots=True)
class Saved:
    """What a checkpoint holds: tensors by prefixed name ("weight/", "mean/", "square/", "best/") and the record."""

    tensors: dict[str, Tensor]
    record: dict[str, Any]


def save(
    folder: Path, trainable: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer,
    best: Mapping[str, Tensor] | None, record: Mapping[str, Any],
) -> Path:  # fmt: skip
    """Write a checkpoint atomically.

    Args:
        folder: made when missing.
        trainable: parameters by name.
        optimizer: AdamW over exactly these.
        best: best weights so far, by the same names.
        record: step, time, history; JSON values.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for name, parameter in trainable.items():
        tensors[f"weight/{name}"] = parameter.detach().cpu().clone().contiguous()
        state = optimizer.state.get(parameter)
        if state:
            tensors[f"mean/{name}"] = state["exp_avg"].detach().cpu().clone().contiguous()
            tensors[f"square/{name}"] = state["exp_avg_sq"].detach().cpu().clone().contiguous()
    for name, tensor in (best or {}).items():
        tensors[f"best/{name}"] = tensor.detach().cpu().clone().contiguous()
    target = folder / NAME
    scratch = folder / f".{NAME}.{os.getpid()}"
    save_file(tensors, scratch, metadata={"record": json.dumps(record)})
    with scratch.open("rb") as file:
        os.fsync(file.fileno())
    scratch.replace(target)
    return target


def load(folder: Path) -> Saved | None:
    """Read the checkpoint of a folder; None when there is none.

    Raises:
        TrainingError: the file is damaged or not a checkpoint.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / NAME
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads(file.metadata()["record"])
            return Saved({name: file.get_tensor(name) for name in file.keys()}, record)  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise TrainingError(f"{path} is not a training checkpoint; remove it to start anew: {error}") from error


def restore(
    saved: Saved, trainable: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor] | None:
    """Put a checkpoint's weights and moments back; returns the best weights when it has some.

    Raises:
        TrainingError: the checkpoint was made for another model or adapter.
    """
    for name, parameter in trainable.items():
        held = saved.tensors.get(f"weight/{name}")
        if held is None or held.shape != parameter.shape:
            raise TrainingError("the checkpoint belongs to another model or adapter; remove it to start anew")
        with torch.no_grad():
            parameter.copy_(held)
        if f"mean/{name}" in saved.tensors:
            optimizer.state[parameter] = {
                "step": torch.tensor(float(saved.record["updates"])),
                "exp_avg": saved.tensors[f"mean/{name}"].to(parameter.device, parameter.dtype),
                "exp_avg_sq": saved.tensors[f"square/{name}"].to(parameter.device, parameter.dtype),
            }
    best = {k.removeprefix("best/"): v for k, v in saved.tensors.items() if k.startswith("best/")}
    return best or None
