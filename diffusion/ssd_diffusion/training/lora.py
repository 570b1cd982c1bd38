"""LoRA through peft: attach to a model, save and load beside the diffusion maps. Knows nothing about data or loops."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssd_diffusion.errors import InvalidModel, TrainingError
from ssd_diffusion.models.ssd2 import Ssd2Model

ADAPTER_FILES = ("adapter_model.safetensors", "adapter.safetensors")
CONFIG_FILE = "adapter_config.json"
DIFFUSION_FILE = "diffusion.safetensors"
_LINEAR = {
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "opt": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraOptions:
    """Shape of the adapter: rank, alpha (scale = alpha / rank), and dropout on its input."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0


def attach(model: Ssd2Model, options: LoraOptions, seed: int = 0) -> Any:
    """Put a fresh LoRA on every linear layer of the backbone; only it and the diffusion maps stay trainable.

    Returns:
        The peft model that wraps `model.causal` (in place), needed by `save_adapter`.
    """
    import peft

    kind = str(model.causal.config.model_type)  # type: ignore[union-attr]
    config = peft.LoraConfig(
        r=options.rank, lora_alpha=options.alpha, lora_dropout=options.dropout,
        target_modules=list(_LINEAR.get(kind, _LINEAR["llama"])), task_type="CAUSAL_LM",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wrapped = _wrap(model, config)
    open_maps(model)
    return wrapped


def open_maps(model: Ssd2Model) -> None:
    """Set w_diff, w_time and the transition to be trained."""
    for part in (model.w_diff, model.w_time, model.transition):
        if part is not None:
            part.requires_grad_(True)


def open_adapter(model: Ssd2Model) -> None:
    """Set a loaded adapter and the diffusion maps to be trained, and nothing else."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    open_maps(model)


@contextmanager
def without_adapter(model: Ssd2Model) -> Iterator[None]:
    """The decoder as it was before its adapter, for as long as the block runs.

    Raises:
        TrainingError: the model has no adapter that could be put aside.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [part for part in model.causal.modules() if isinstance(part, BaseTunerLayer)]
    if not layers:
        raise TrainingError("this model has no adapter to be put aside; attach one, or train without what needs it")
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def _wrap(model: Ssd2Model, config: Any) -> Any:
    import peft

    with warnings.catch_warnings():
        # peft asks transformers for an attribute that has a new name; nothing that a user could do about it.
        warnings.filterwarnings("ignore", category=FutureWarning)
        return peft.get_peft_model(model.causal, config)


def save_adapter(wrapped: Any, model: Ssd2Model, folder: Path, *, half: bool = False) -> None:
    """Write peft's own layout (adapter_model.safetensors, adapter_config.json) and diffusion.safetensors.

    Args:
        wrapped: what `attach` returned.
        model: the model it was attached to.
        folder: made when missing.
        half: store in float16.
    """
    import peft
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    dtype = torch.float16 if half else torch.float32
    state = {
        k: v.detach().cpu().to(dtype).contiguous()
        for k, v in peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False).items()
    }
    save_file(state, folder / ADAPTER_FILES[0])
    save_file({k: v.to(dtype) for k, v in diffusion_state(model).items()}, folder / DIFFUSION_FILE)
    config = wrapped.peft_config["default"]
    held = config.inference_mode
    config.inference_mode = True
    config.save_pretrained(str(folder))
    config.inference_mode = held
    _tell_no_place(folder / CONFIG_FILE)


def _tell_no_place(path: Path) -> None:
    """Name the base without the folder it lay in, and its layers in order: an adapter may go to others."""
    config = json.loads(path.read_text(encoding="utf-8"))
    base = Path(config.get("base_model_name_or_path") or "")
    if base.is_absolute():
        config["base_model_name_or_path"] = base.name
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def diffusion_state(model: Ssd2Model) -> dict[str, Tensor]:
    """The tensors of diffusion.safetensors, on the CPU."""
    parts = {"w_diff": model.w_diff, "w_time": model.w_time, "transition": model.transition}
    return {
        f"{part}.{name}": value.detach().cpu().contiguous()
        for part, held in parts.items()
        if held is not None
        for name, value in held.state_dict().items()
    }


def load_diffusion(model: Ssd2Model, path: Path) -> None:
    """Read w_diff, w_time and, if there is one, the transition from a diffusion.safetensors.

    Raises:
        InvalidModel: missing, truncated, foreign, of another width, or not finite.
    """
    state = read_tensors(path)
    inner = state.get("transition.inner.weight")
    model.transition = None
    if inner is not None and inner.ndim == 2:
        model.add_transition(inner.shape[0])
    own = diffusion_state(model)
    if state.keys() != own.keys() or any(state[k].shape != own[k].shape for k in own):
        raise InvalidModel(f"{path} does not fit this model; its w_diff and w_time must have width {model.hidden_size}")
    for name, part in (("w_diff", model.w_diff), ("w_time", model.w_time), ("transition", model.transition)):
        if part is not None:
            part.load_state_dict({k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")})


def load_adapter(model: Ssd2Model, folder: Path) -> Any:
    """Put a saved adapter on a model and read its diffusion maps; the counterpart of `save_adapter`.

    Raises:
        InvalidModel: a missing, truncated or foreign file.
    """
    import peft

    file = next((folder / name for name in ADAPTER_FILES if (folder / name).is_file()), None)
    if file is None or not (folder / CONFIG_FILE).is_file():
        raise InvalidModel(f"{folder} holds no adapter; it needs {CONFIG_FILE} and {ADAPTER_FILES[0]}")
    state = read_tensors(file)
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
        config.base_model_name_or_path = None  # peft warns where the base has another path than at training
        wrapped = _wrap(model, config)
        outcome = peft.set_peft_model_state_dict(wrapped, {k: v.float() for k, v in state.items()})
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise InvalidModel(f"the adapter in {folder} does not fit this model: {error}") from error
    missing = [k for k in outcome.missing_keys if "lora_" in k]
    if missing or outcome.unexpected_keys:
        raise InvalidModel(f"the adapter in {folder} was made for another model")
    load_diffusion(model, folder / DIFFUSION_FILE)
    return wrapped


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        InvalidModel: missing, truncated, foreign, or with values that are not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InvalidModel(f"{path} is missing or damaged: {error}") from error
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InvalidModel(f"{path} holds values that are not finite (in {name}); get the file again")
    return state
