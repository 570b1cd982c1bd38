"""Tiny random model folders: width 16, 256 tokens, seeded. For tests, and for trying a node without weights.

The folder has the layout of every model folder, so that whatever reads it runs the real path. The tokenizer is
byte-level: three special tokens stand in the place of three bytes that never occur in UTF-8, so 256 ids are enough for
any text. Knows nothing about engines, sessions or training.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any, Literal

from ssd_diffusion.errors import InvalidModel
from ssd_diffusion.spec_file import model_id

TinyFamily = Literal["llama", "opt", "ssdlm"]

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_SPECIALS = (END_OF_TEXT, IM_START, IM_END)
_NEVER_IN_UTF8 = (0xFD, 0xFE, 0xFF)
_LAYERS, _HEADS, _MAX_CONTEXT, _MAX_BLOCK = 2, 2, 1024, 32
_HASHED = ("config.json", "model.safetensors", "diffusion.safetensors")

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def write_tiny(
    path: Path,
    *,
    family: TinyFamily = "llama",
    seed: int = 0,
    width: int = 16,
    vocab: int = 256,
    learned: float = 0.0,
    name: str | None = None,
) -> Path:
    """Write a tiny random model folder; an earlier one at the same path is replaced.

    Args:
        path: the folder to make.
        family: "llama" or "opt" (ssd2 family) or "ssdlm" (RoBERTa, untied W_diff).
        seed: seed of all weights.
        width: H; a multiple of 4.
        vocab: V, 256 to 932; above 256 the tokenizer merges pairs of letters.
        learned: scale of a random change to W_diff and W_time; 0 leaves them as before any training.
        name: model name; by default "tiny-FAMILY".

    Raises:
        InvalidModel: a width, vocabulary size or family that cannot be made.
    """
    if width < 4 or width % 4 or not 256 <= vocab <= 256 + 26 * 26:
        raise InvalidModel("a tiny model needs a width that is a multiple of 4 and a vocabulary of 256 to 932 tokens")
    if family not in ("llama", "opt", "ssdlm"):
        raise InvalidModel(f"there is no tiny model of family {family!r}; use llama, opt or ssdlm")
    path = Path(path)
    scratch = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    _write_backbone(scratch, family, seed, width, vocab)
    _write_diffusion(scratch, family, seed, width, learned)
    _write_tokenizer(scratch, vocab)
    _write_cards(scratch, name or f"tiny-{family}", family, width, vocab)
    shutil.rmtree(path, ignore_errors=True)
    scratch.rename(path)
    return path


def _write_backbone(folder: Path, family: TinyFamily, seed: int, width: int, vocab: int) -> None:
    import torch
    import transformers

    shared: dict[str, Any] = {
        "vocab_size": vocab, "hidden_size": width, "num_hidden_layers": _LAYERS, "num_attention_heads": _HEADS,
        "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 2, "tie_word_embeddings": True,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if family == "llama":
            model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
                **shared, intermediate_size=2 * width, num_key_value_heads=1, max_position_embeddings=_MAX_CONTEXT,
                initializer_range=0.3,
            ))  # fmt: skip
        elif family == "opt":
            model = transformers.OPTForCausalLM(transformers.OPTConfig(
                **shared, ffn_dim=2 * width, max_position_embeddings=_MAX_CONTEXT, word_embed_proj_dim=width,
                dropout=0.0, init_std=0.3,
            ))  # fmt: skip
        else:
            model = transformers.RobertaForMaskedLM(transformers.RobertaConfig(
                **shared, intermediate_size=2 * width, max_position_embeddings=_MAX_CONTEXT + 2, type_vocab_size=1,
                hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.3,
            ))  # fmt: skip
    bar = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    if bar:
        transformers.utils.logging.enable_progress_bar()


def _write_diffusion(folder: Path, family: TinyFamily, seed: int, width: int, learned: float) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(seed + 1)
    if family == "ssdlm":
        names = {"llama": "", "opt": "", "ssdlm": "roberta.embeddings.word_embeddings.weight"}
        w_diff = load_file(folder / "model.safetensors")[names[family]].clone()
    else:
        w_diff = torch.eye(width)
    w_diff = w_diff + learned * torch.randn(w_diff.shape, generator=generator) / width**0.5
    w_time = learned * torch.randn((width, 1), generator=generator)
    bias = learned * 0.1 * torch.randn((width,), generator=generator)
    tensors = {"w_diff.weight": w_diff, "w_time.weight": w_time, "w_time.bias": bias}
    save_file({k: v.to(torch.float32).contiguous() for k, v in tensors.items()}, folder / "diffusion.safetensors")


def _byte_alphabet() -> dict[int, str]:
    """The printable character that byte-level BPE writes for every byte (as GPT-2 does)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {byte: chr(byte) for byte in plain}
    for shift, byte in enumerate(b for b in range(256) if b not in plain):
        table[byte] = chr(256 + shift)
    return table


def _write_tokenizer(folder: Path, vocab: int) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = "abcdefghijklmnopqrstuvwxyz"
    symbols = [char for byte, char in sorted(_byte_alphabet().items()) if byte not in _NEVER_IN_UTF8]
    merges = [(a, b) for a in letters for b in letters][: vocab - 256]
    ids = {token: i for i, token in enumerate([*_SPECIALS, *symbols, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in _SPECIALS])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END_OF_TEXT, "eos_token": IM_END,
        "pad_token": END_OF_TEXT, "eos_token_id": [0, 2], "model_max_length": _MAX_CONTEXT,
        "additional_special_tokens": [IM_START, IM_END],
    }  # fmt: skip
    _write_json(folder / "tokenizer_config.json", config)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def _write_cards(folder: Path, name: str, family: TinyFamily, width: int, vocab: int) -> None:
    decoder = family != "ssdlm"
    spec = {
        "format": 1, "model_id": model_id(name, folder, _HASHED), "family": "ssd2" if decoder else "ssdlm",
        "vocab": vocab, "hidden": width, "max_block": _MAX_BLOCK, "max_context": _MAX_CONTEXT, "simplex_k": 5.0,
        "schedule_s": 1e-4, "output_shift": decoder, "grid": [1.0, 0.6, 0.5, 0.4, 0.3, 0.2],
        "tokenizer_fingerprint": _fingerprint(folder), "eos_ids": [0, 2], "layers": _LAYERS,
        "kv_heads": 1 if family == "llama" else _HEADS, "head_dim": width // _HEADS,
    }  # fmt: skip
    _write_json(folder / "model.json", spec)
    _write_json(
        folder / "card.json", {"format": 1, "name": name, "base": "random", "note": "random weights, for tests"}
    )


def _fingerprint(folder: Path) -> str:
    from ssd_diffusion.tokenizer import Tokenizer

    return Tokenizer.load(folder).fingerprint


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def main() -> None:
    """Command line: `python -m ssd_diffusion.models.tiny OUT [--family F] [--seed N]`."""
    parser = argparse.ArgumentParser(prog="ssd_diffusion.models.tiny", description="Write a tiny random model folder.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--family", choices=["llama", "opt", "ssdlm"], default="llama")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--vocab", type=int, default=256)
    parser.add_argument("--learned", type=float, default=0.0)
    given = parser.parse_args()
    write_tiny(
        given.out, family=given.family, seed=given.seed, width=given.width, vocab=given.vocab, learned=given.learned
    )


if __name__ == "__main__":
    main()
