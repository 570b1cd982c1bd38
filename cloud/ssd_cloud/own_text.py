"""Texts that a model writes itself, to learn drafts from: a draft is right where it foresees what the model writes.

A file holds a line about the model and how it wrote, then one line a text: {prompt: ids, ids: ids}. It grows by whole
batches, so a run that was killed loses one at most. Knows nothing about training or the terminal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from ssd_diffusion.errors import TrainingError
from ssd_diffusion.spec_file import read_spec
from ssd_diffusion.tokenizer import Tokenizer
from ssd_diffusion.training.precision import cpu_has_bf16
from torch import Tensor

from ssd_cloud.training_text import Texts, read_sources

FORM = 1
_NUCLEUS = 256
"""Tokens that a nucleus is sought among."""
_PROMPT = (12, 40)
"""Least and most tokens of a piece of text that is continued."""
_LONGEST_CHAT = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnTextOptions:
    """What writes, after what, and how much.

    Attributes:
        model: the model folder.
        data: text and chats whose beginnings are continued, and whose questions are answered.
        out: the JSONL file; one that is there is continued.
        tokens: to write in all, those in the file included.
        length: most tokens of a text.
        batch: texts at once.
        chat_share: share of batches that are answers to chats, where the data have some.
        temperature, top_p: of the draws.
        seed: of prompts and draws.
    """

    model: Path
    data: tuple[Path, ...]
    out: Path
    tokens: int
    length: int = 112
    batch: int = 64
    chat_share: float = 0.4
    temperature: float = 0.7
    top_p: float = 0.9
    seed: int = 0


def read_own(paths: Sequence[Path], tokenizer: Tokenizer) -> list[list[int]]:
    """Prompt and text of every line, as one.

    Raises:
        TrainingError: a file that is missing, of another form, or of another vocabulary.
    """
    found: list[list[int]] = []
    for path in paths:
        head, rows = _read(path)
        if head["tokenizer"] != tokenizer.fingerprint:
            raise TrainingError(f"{path} was written in another vocabulary; write it again with a model of this base")
        found += [[*row["prompt"], *row["ids"]] for row in rows]
    return found


def write_own(options: OwnTextOptions, on_progress: Callable[[float], None] = lambda _: None) -> int:
    """Write texts until the file holds as many tokens as wanted.

    Args:
        options: what and how.
        on_progress: called with the fraction that is done.

    Returns:
        Tokens in the file.

    Raises:
        TrainingError: no text to begin from, or a file of another model or another way of writing.
        InvalidModel: the model folder is not one.
    """
    tokenizer = Tokenizer.load(options.model)
    head = _head(options, tokenizer)
    written, batches = _continue(options.out, head)
    sources = read_sources(options.data, tokenizer)
    eos = tokenizer.eos_ids[0] if tokenizer.eos_ids else 0
    dtype = torch.bfloat16 if torch.cuda.is_available() or cpu_has_bf16() else torch.float32
    model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    while written < options.tokens:
        prompts = _prompts(sources, options, batches)
        torch.manual_seed(options.seed + batches)
        texts = _write(model, prompts, options, eos)
        with options.out.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({"prompt": p, "ids": t}) + "\n" for p, t in zip(prompts, texts, strict=True))
        written, batches = written + sum(map(len, texts)), batches + 1
        on_progress(min(1.0, written / options.tokens))
    return written


class Nucleus(transformers.LogitsProcessor):  # type: ignore[misc]
    """Keeps the smallest set of tokens that holds `top_p`, sought among the likeliest; the first always stays."""

    def __init__(self, temperature: float, top_p: float) -> None:
        """Args: as of the draws."""
        self.temperature, self.top_p = temperature, top_p

    def __call__(self, _: Tensor, scores: Tensor) -> Tensor:
        """Logits of the next token. [R, V] -> [R, V]"""
        logits = scores.float() / self.temperature
        top, where = logits.topk(min(_NUCLEUS, logits.shape[-1]), dim=-1)
        p = (top - torch.logsumexp(logits, dim=-1, keepdim=True)).exp()
        top = top.masked_fill(p.cumsum(-1) - p >= self.top_p, -torch.inf)
        return torch.full_like(logits, -torch.inf).scatter_(1, where, top)


def _head(options: OwnTextOptions, tokenizer: Tokenizer) -> dict[str, Any]:
    how = ("length", "batch", "chat_share", "temperature", "top_p", "seed")
    kept = {name: value for name, value in asdict(options).items() if name in how}
    return {"own": FORM, "tokenizer": tokenizer.fingerprint, "model": read_spec(options.model).model_id, **kept}


def _continue(path: Path, head: dict[str, Any]) -> tuple[int, int]:
    """Tokens and batches that the file holds; a new one gets its first line."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(head) + "\n", encoding="utf-8")
        return 0, 0
    held, rows = _read(path)
    if held != head:
        raise TrainingError(f"{path} was written by another model or in another way; name another file")
    whole = rows[: len(rows) - len(rows) % int(head["batch"])]
    lines = [json.dumps(head), *map(json.dumps, whole)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return sum(len(row["ids"]) for row in whole), len(whole) // int(head["batch"])


def _read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        head = json.loads(lines[0])
        rows = list(_rows(lines[1:]))
        if head["own"] != FORM or not all(isinstance(row["prompt"] + row["ids"], list) for row in rows):
            raise KeyError("own")
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, IndexError, KeyError, TypeError) as error:
        raise TrainingError(f"{path} is no file of a model's own text; write one with `ssd-cloud own-text`") from error
    return head, rows


def _rows(lines: Sequence[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            if number < len(lines):  # the last one may be cut off by a kill
                raise


def _prompts(sources: Sequence[Texts], options: OwnTextOptions, batch: int) -> list[list[int]]:
    """The beginnings of one batch: all pieces of text, or all chats."""
    rng = np.random.default_rng([options.seed, batch])
    asked = [texts.pairs for texts in sources if texts.pairs]
    if asked and rng.random() < options.chat_share:
        groups = [asked[int(rng.integers(len(asked)))] for _ in range(options.batch)]
        prompts = [np.asarray(pairs[int(rng.integers(len(pairs)))].prompt) for pairs in groups]
        return [prompt[-_LONGEST_CHAT:].tolist() for prompt in prompts]
    found = []
    for _ in range(options.batch):
        documents = sources[int(rng.integers(len(sources)))].documents
        ids = documents[int(rng.integers(len(documents)))]
        first = int(rng.integers(0, max(1, len(ids) - _PROMPT[1])))
        found.append(ids[first : first + int(rng.integers(_PROMPT[0], _PROMPT[1] + 1))].tolist())
    return found


@torch.inference_mode()
def _write(model: Any, prompts: Sequence[Sequence[int]], options: OwnTextOptions, eos: int) -> list[list[int]]:
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), eos)
    mask = torch.zeros_like(ids)
    for r, prompt in enumerate(prompts):
        ids[r, width - len(prompt) :] = torch.tensor(prompt)
        mask[r, width - len(prompt) :] = 1
    found = model.generate(
        input_ids=ids.to(model.device), attention_mask=mask.to(model.device), max_new_tokens=options.length,
        do_sample=True, logits_processor=[Nucleus(options.temperature, options.top_p)], top_k=0, top_p=1.0,
        temperature=1.0, eos_token_id=eos, pad_token_id=eos,
    )[:, width:].tolist()  # fmt: skip
    return [row[: row.index(eos) + 1] if eos in row else row for row in found]
