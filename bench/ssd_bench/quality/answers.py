"""Instruction following: answers to held-out requests against their references, by the core and by its base.

Greedy answers, token F1 as SQuAD counts it, and what the reference itself costs: S1 under the core, next-token nats
under the base. Knows nothing about files of results.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from ssd_diffusion.tokenizer import Tokenizer
from ssd_kernels.types import I32

from ssd_bench.lines import LineFile, digest
from ssd_bench.quality.denoising import chain
from ssd_bench.quality.generation import decoder
from ssd_bench.quality.judges import AutoregressiveJudge
from ssd_bench.quality.models import Opened
from ssd_bench.quality.settings import CORE, Setting, params_of
from ssd_bench.quality.together import decode_together
from ssd_bench.text import token_f1

KEY = ("pair", "writer")
MAX_PROMPT, MAX_ANSWER = 640, 64
WRITERS = ("core", "base")
_GREEDY = {"temperature": 0.0}
_SETTINGS = {
    "core": Setting(name="core, greedy", first_only=CORE.first_only, changes=_GREEDY),
    "base": Setting(name="base, greedy", decoder="ar", base=True, changes=_GREEDY),
}
HOW = {writer: [setting.how, MAX_ANSWER] for writer, setting in _SETTINGS.items()}
"""All that decides an answer."""


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A request and what should be answered.

    Attributes:
        id: digest of the request.
        context: ids of the conversation up to the answer.
        reference: ids of the answer.
        text: the answer as text.
    """

    id: str
    context: I32
    reference: I32
    text: str


def read_pairs(tokenizer: Tokenizer, paths: Sequence[Path], *, count: int, seed: int) -> list[Pair]:
    """The first answers of conversations, in an order that follows from the seed, the files by turns.

    Prompts over MAX_PROMPT and references over MAX_ANSWER tokens are passed over.

    Raises:
        ValueError: a file cannot be read, or none holds such a pair.
    """
    per_file = [_of_file(tokenizer, path, count, [seed, i]) for i, path in enumerate(paths)]
    if paths and not any(per_file):
        raise ValueError(
            f"{paths[0]} holds no pair of at most {MAX_PROMPT} tokens of request and {MAX_ANSWER} of answer; "
            "give others"
        )
    return [found[i] for i in range(count) for found in per_file if i < len(found)][:count]


def _of_file(tokenizer: Tokenizer, path: Path, count: int, seed: Sequence[int]) -> list[Pair]:
    try:
        rows = [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        order = np.random.default_rng(list(seed)).permutation(len(rows))
        found: list[Pair] = []
        for i in order.tolist():
            at = next((k for k, message in enumerate(rows[i]) if message["role"] == "assistant"), 0)
            request, last = rows[i][:at], rows[i][at]
            if not request:
                continue
            context, reference = tokenizer.chat(request), tokenizer.encode(str(last["content"]))
            if len(context) <= MAX_PROMPT and 1 <= len(reference) <= MAX_ANSWER:
                found.append(Pair(digest(request), context, reference, str(last["content"])))
            if len(found) == count:
                break
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no conversations ({error}); give --pairs JSON lines with `messages`") from error
    return found


def measure(
    models: tuple[Opened, Opened],
    pairs: Sequence[Pair],
    records: LineFile,
    *,
    seed: int,
    batch: int = 8,
    advance: Callable[[], None],
) -> None:
    """Answer and score what the records do not hold yet; `advance` is called for every pair and writer.

    A record is {pair, writer, said, f1, nats, tokens}.
    """
    for writer, opened in zip(WRITERS, models, strict=True):
        missing = [pair for pair in pairs if records.get(pair.id, writer) is None]
        setting = _SETTINGS[writer]
        params = replace(params_of(setting, opened.spec, MAX_ANSWER), eos_ids=opened.spec.eos_ids)
        engine = opened.engine(slots=batch, batch_width=batch, conditioned=True)
        for first in range(0, len(missing), batch):
            part = missing[first : first + batch]
            decode = decoder(setting.decoder, params, [seed] * len(part))
            texts = decode_together(engine, [pair.context for pair in part], decode)
            for pair, text in zip(part, texts, strict=True):
                said = opened.tokenizer.decode(text.ids).strip()
                records.add([{
                    "pair": pair.id, "writer": writer, "said": said, "f1": token_f1(said, [pair.text]),
                    "nats": _reference_nats(opened, pair, writer), "tokens": len(pair.reference),
                }])  # fmt: skip
                advance()


def _reference_nats(opened: Opened, pair: Pair, writer: str) -> float:
    if writer == "base":
        return float(AutoregressiveJudge(opened.reading).nats([pair.context], [pair.reference])[0])
    ids = np.concatenate([pair.context, pair.reference])
    return float(chain(opened.reading, ids, first=len(pair.context)).sum())
