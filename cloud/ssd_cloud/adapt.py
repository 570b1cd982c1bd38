"""Adaptation of a pretrained decoder to block diffusion: from a base and text to a model folder.

OUT becomes a model folder that `ssd-cloud serve --model OUT` takes: the base with its adapter merged, and beside it
`adapter/` (peft's layout), `training/` (checkpoint, loss.csv), `loss.png` and the held-out scores in `card.json`. A run
that was killed goes on from `training/`. Knows nothing about the terminal.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ssd_diffusion import packaged
from ssd_diffusion.errors import InvalidModel, TrainingError
from ssd_diffusion.models import folder
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.tokenizer import TOKENIZER_FILE, Tokenizer
from ssd_diffusion.training import data, loop, lora
from ssd_diffusion.training.evaluate import Scores, evaluate
from ssd_diffusion.training.objective import ObjectiveOptions

HELD_OUT_EVERY = 20
"""Of so many documents one is held out."""
_HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptOptions:
    """What to adapt, on what, and how.

    Attributes:
        base: "packaged", a model folder, a plain transformers folder, or a hub id.
        data: text files, JSONL files (`text`, `messages`, or DOLLY's columns), or folders of these.
        out: the model folder to make.
        rank: of the LoRA; its alpha is twice that.
        block: B of the training windows.
        length: tokens of a packed row.
        rows: rows per batch.
        accumulate: batches per step.
        offsets: sets of blocks that share a row's clean half.
        chat_share: share of the batches that are prompts with supervised responses (when there are chats).
        next_token_share: share of the other batches that have no noisy blocks, and the next-token loss alone.
        steps, max_minutes, learning_rate, warmup_steps, checkpoint_minutes, resume, seed: see `TrainOptions`.
        evaluation_rows: held-out rows to score before and after; 0 for none.
    """

    base: str
    data: tuple[Path, ...]
    out: Path
    rank: int = 16
    block: int = 16
    length: int = 192
    rows: int = 1
    accumulate: int = 1
    offsets: int = 2
    chat_share: float = 0.15
    next_token_share: float = 0.0
    steps: int | None = None
    max_minutes: float | None = None
    learning_rate: float = 5e-4
    warmup_steps: int = 20
    checkpoint_minutes: float = 3.0
    resume: bool = True
    seed: int = 0
    evaluation_rows: int = 4


@dataclass(frozen=True, slots=True)
class Adapted:
    """What came out: the model folder, how training went, held-out scores before and after (None: not asked)."""

    folder: Path
    report: loop.TrainReport
    before: Scores | None
    after: Scores | None


def adapt(
    options: AdaptOptions,
    home: Path,
    *,
    on_stage: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[loop.Progress], None] | None = None,
) -> Adapted:
    """Adapt a base on text and chats and write a model folder.

    Args:
        options: what and how.
        home: the local store, for the packaged base.
        on_stage: called with a few words when a stage begins.
        on_progress: called after every step.

    Raises:
        InvalidModel: the base cannot be read.
        TrainingError: no text, no bound on the run, or a loss that is not finite.
    """
    if options.steps is None and options.max_minutes is None:
        raise TrainingError("training needs a bound; give --steps or --max-minutes")
    on_stage("reading the base")
    source = base_folder(options.base, home, options.out)
    model = open_base(source)
    tokenizer = Tokenizer.load(source)
    on_stage("reading the text")
    text, held = split_documents(read_data(options.data, tokenizer))
    rows = training_rows(text, options, tokenizer.eos_ids[0] if tokenizer.eos_ids else 0)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    score = _scorer(held or text, options, on_stage)
    before = score(model, "scoring the base")
    wrapped = lora.attach(model, lora.LoraOptions(rank=options.rank, alpha=2 * options.rank), seed=options.seed)
    on_stage("training")
    report = loop.train(model, rows, train_options(options), on_progress=on_progress)
    after = score(model, "scoring the adapted model")
    on_stage("writing the model")
    _write(model, wrapped, options, source, report, (before, after))
    return Adapted(options.out, report, before, after)


def base_folder(base: str, home: Path, out: Path) -> Path:
    """A local folder with the base's weights and a tokenizer.json.

    Raises:
        InvalidModel: there is no such base, here or on the hub.
    """
    if base in ("packaged", packaged.NAME):
        return packaged.ensure(home / "base", weights=home / "base" / "no-adapter")
    path = Path(base).expanduser()
    if not path.is_dir():
        path = _from_hub(base)
    if (path / TOKENIZER_FILE).is_file():
        return path
    return with_tokenizer(path, out / "base")


def open_base(source: Path) -> Ssd2Model:
    """A base to train, in float32: a model folder of ours with its diffusion maps, or a plain decoder."""
    if (source / "model.json").is_file():
        return folder.load(source)[0]
    model = folder.from_pretrained(source)
    model.make_state_legible()
    return model


@dataclass(frozen=True, slots=True)
class Texts:
    """Tokenized data: documents (rendered chats among them), and chats as prompt and response."""

    documents: Sequence[Sequence[int]]
    pairs: Sequence[data.Pair]


def read_data(paths: Sequence[Path], tokenizer: Tokenizer) -> Texts:
    """Tokenize every document and chat of the data.

    Raises:
        TrainingError: a path that cannot be read, or nothing in them.
    """
    return tokenize(data.read_items(paths), tokenizer)


def tokenize(items: Iterable[data.Item], tokenizer: Tokenizer) -> Texts:
    """Documents and chats as token ids.

    Raises:
        TrainingError: there is none.
    """
    documents: list[Sequence[int]] = []
    pairs: list[data.Pair] = []
    for item in items:
        if isinstance(item, str):
            documents.append(tokenizer.encode(item).tolist())
        elif item[-1]["role"] == "assistant":
            documents.append(tokenizer.chat(item, add_generation_prompt=False).tolist())
            response = tokenizer.encode(item[-1]["content"]).tolist()
            pairs.append(data.Pair(tokenizer.chat(item[:-1]).tolist(), response))
    if not documents:
        raise TrainingError("there is no text in the data; name .txt, .md or .jsonl files, or folders of these")
    return Texts(documents, pairs)


def split_documents(texts: Texts) -> tuple[Texts, Texts | None]:
    """Every twentieth document and chat is held out, after one fixed shuffle; None when there are too few."""
    if len(texts.documents) < HELD_OUT_EVERY:
        return texts, None
    order = [int(i) for i in np.random.default_rng(7).permutation(len(texts.documents))]
    held = set(order[::HELD_OUT_EVERY])
    pairs = [p for i, p in enumerate(texts.pairs) if i % HELD_OUT_EVERY]
    train = Texts([texts.documents[i] for i in order if i not in held], pairs)
    return train, Texts([texts.documents[i] for i in sorted(held)], [])


def training_rows(texts: Texts, options: AdaptOptions, eos: int) -> data.Rows:
    """Packed rows of everything, mixed with prompts whose responses are supervised.

    Raises:
        TrainingError: too little text.
    """
    share = options.chat_share if texts.pairs else 0.0
    sources: list[tuple[float, data.Rows]] = []
    if share < 1.0:
        stream = data.pack(texts.documents, eos)
        for part, noisy, salt in ((1.0 - options.next_token_share, True, 0), (options.next_token_share, False, 2)):
            if part > 0.0:
                packed = data.PackedRows(
                    stream, length=options.length, block=options.block, rows=options.rows, seed=options.seed + salt,
                    noisy=noisy, offsets=options.offsets,
                )  # fmt: skip
                sources.append(((1.0 - share) * part, packed))
    if share > 0.0:
        answers = data.InstructionRows(
            texts.pairs, length=2 * options.length, block=options.block, rows=2 * options.rows,
            seed=options.seed + 1, eos=eos,
        )  # fmt: skip
        sources.append((share, answers))
    return data.MixedRows(sources, options.seed)


def train_options(options: AdaptOptions) -> loop.TrainOptions:
    """How the loop is to train; its state is kept in OUT/training."""
    return loop.TrainOptions(
        steps=options.steps, max_minutes=options.max_minutes, learning_rate=options.learning_rate,
        warmup_steps=options.warmup_steps, accumulate=options.accumulate, objective=ObjectiveOptions(),
        checkpoint_dir=options.out / "training", checkpoint_minutes=options.checkpoint_minutes,
        resume=options.resume, seed=options.seed,
    )  # fmt: skip


def _scorer(
    texts: Texts, options: AdaptOptions, on_stage: Callable[[str], None]
) -> Callable[[Ssd2Model, str], Scores | None]:
    if not options.evaluation_rows:
        return lambda _model, _stage: None
    stream = data.pack(texts.documents, 0)
    rows = data.PackedRows(stream, length=options.length, block=options.block, rows=1, seed=99)

    def score(model: Ssd2Model, stage: str) -> Scores:
        on_stage(stage)
        return evaluate(model, rows, batches=options.evaluation_rows)

    return score


def _write(
    model: Ssd2Model,
    wrapped: Any,
    options: AdaptOptions,
    source: Path,
    report: loop.TrainReport,
    scores: tuple[Scores | None, Scores | None],
) -> None:
    out = options.out
    lora.save_adapter(wrapped, model, out / "adapter")
    loop.plot(out / "loss.png", report.history)
    model.causal = wrapped.merge_and_unload()
    card = {
        "name": out.name, "base": options.base, "made": time.strftime("%Y-%m-%d", time.gmtime()),
        "rank": options.rank, "block": options.block, "steps": report.steps, "targets": report.targets,
        "minutes": round(report.elapsed_s / 60, 1), "data": [path.name for path in options.data],
        "heldout_before": scores[0] and scores[0].as_json(), "heldout_after": scores[1] and scores[1].as_json(),
    }  # fmt: skip
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    folder.save(model.cpu().to(dtype), out, name=out.name, tokenizer=source, card=card)


def _from_hub(name: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(_HUB_FILES)))
    except (HFValidationError, HfHubHTTPError, OSError, ValueError) as error:
        raise InvalidModel(f"there is no folder {name}, and the hub gives no model of that name; check both") from error


def with_tokenizer(path: Path, scratch: Path) -> Path:
    """The same folder beside a tokenizer.json, for bases that keep theirs in another form (OPT's vocab and merges).

    Raises:
        InvalidModel: transformers finds no tokenizer there.
    """
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InvalidModel(f"{path} has no tokenizer that can be read; fetch the model again") from error
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    tokenizer.save_pretrained(scratch)  # before the links, through which it would write into the base itself
    for file in path.iterdir():
        link = scratch / file.name
        if file.is_file() and not link.exists():
            link.symlink_to(file.resolve())
    return scratch
