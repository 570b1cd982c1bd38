"""Model folders of the SSD-2 family: load, save, and take over a plain pretrained decoder.

A folder holds `model.json` (spec), `config.json` and `model.safetensors` (the backbone, in transformers' names),
`diffusion.safetensors` (w_diff, w_time), the tokenizer's files and `card.json`. Only safetensors are read. Knows
nothing about engines or training.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from ssd_diffusion.engine import ModelSpec
from ssd_diffusion.errors import InvalidModel
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.schedule import SCHEDULE_S, SIMPLEX_K
from ssd_diffusion.spec_file import check_files, model_id, one_line, read_spec, write_spec
from ssd_diffusion.tokenizer import Tokenizer, copy_tokenizer
from ssd_diffusion.training.lora import DIFFUSION_FILE, diffusion_state, load_diffusion

HASHED = ("config.json", "model.safetensors", DIFFUSION_FILE)
CARD_FILE = "card.json"
MAX_BLOCK = 32
MAX_CONTEXT = 4096
DEFAULT_GRID = (1.0, 0.6, 0.5, 0.4, 0.3, 0.2)
_BACKBONES = ("llama", "opt")


def load(folder: Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Ssd2Model, ModelSpec]:
    """A model folder of the SSD-2 family and its spec.

    Raises:
        InvalidModel: a file is missing, truncated, foreign, changed or of another family, or weights are not finite.
    """
    spec = read_spec(folder)
    if spec.family != "ssd2":
        raise InvalidModel(f"{folder} holds a model of the {spec.family} family, and this needs one of ssd2")
    model = Ssd2Model(load_backbone(folder, dtype), spec.vocab)
    if model.hidden_size != spec.hidden or model.table.shape[0] != spec.vocab:
        raise InvalidModel(f"{folder / 'model.json'} does not describe the weights beside it; fetch the model again")
    load_diffusion(model, folder / DIFFUSION_FILE)
    check_files(folder, spec, HASHED)
    return model.to(device).eval(), spec


def load_backbone(folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> nn.Module:
    """The decoder of a folder in transformers' layout (or, with `gguf_file`, of a GGUF file), every weight finite.

    Raises:
        InvalidModel: no such decoder, a truncated file, or weights that are missing or not finite.
    """
    try:
        model, found = transformers.AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise InvalidModel(f"{folder} is not a decoder that can be read ({one_line(error)}); fetch it again") from error
    absent = [*found["missing_keys"], *found["mismatched_keys"]]
    if absent:
        raise InvalidModel(f"{folder} lacks {len(absent)} of the backbone's tensors ({absent[0]}); fetch it again")
    if model.config.model_type not in _BACKBONES:
        raise InvalidModel(f"{folder} is a {model.config.model_type} model; backbones are {' and '.join(_BACKBONES)}")
    if not all(bool(torch.isfinite(value).all()) for value in model.state_dict().values()):
        raise InvalidModel(f"{folder} holds weights that are not finite numbers; fetch the model again")
    held: nn.Module = model
    return held


def save(
    model: Ssd2Model,
    folder: Path,
    *,
    name: str,
    tokenizer: Path,
    card: dict[str, Any],
    grid: tuple[float, ...] = DEFAULT_GRID,
    max_context: int = MAX_CONTEXT,
) -> ModelSpec:
    """Write a model folder; adapters must be merged before.

    Args:
        model: backbone and diffusion maps, in the dtype to store.
        folder: made when missing.
        name: model name; the id adds a hash over weights and configuration.
        tokenizer: a folder with the tokenizer's files.
        card: what the model is, for people; `card.json`.
        grid: the model's own step grid.
        max_context: most tokens of a slot; the backbone's positions bound it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    backbone: Any = model.causal
    backbone.save_pretrained(folder)
    save_file({key: value.float() for key, value in diffusion_state(model).items()}, folder / DIFFUSION_FILE)
    if tokenizer.resolve() != folder.resolve():
        copy_tokenizer(tokenizer, folder)
    (folder / CARD_FILE).write_text(json.dumps(card, indent=1, sort_keys=True) + "\n")
    held = Tokenizer.load(folder)
    config = backbone.config
    spec = ModelSpec(
        model_id=model_id(name, folder, HASHED),
        family="ssd2",
        vocab=model.vocab,
        hidden=model.hidden_size,
        max_block=MAX_BLOCK,
        max_context=min(max_context, int(config.max_position_embeddings)),
        simplex_k=SIMPLEX_K,
        schedule_s=SCHEDULE_S,
        grid=grid,
        tokenizer_fingerprint=held.fingerprint,
        eos_ids=held.eos_ids,
        layers=int(config.num_hidden_layers),
        kv_heads=int(getattr(config, "num_key_value_heads", config.num_attention_heads)),
        head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads),
    )
    write_spec(folder, spec)
    return spec


def from_pretrained(folder: Path, dtype: torch.dtype = torch.float32) -> Ssd2Model:
    """A plain pretrained decoder as a model that has learned nothing about noise yet.

    Raises:
        InvalidModel: no decoder, or no tokenizer beside it.
    """
    return Ssd2Model(load_backbone(folder, dtype), Tokenizer.load(folder).vocab)
