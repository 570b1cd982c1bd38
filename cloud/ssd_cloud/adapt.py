"""Adaptation of a pretrained decoder to block diffusion: from a base and text to a model folder.

OUT becomes a model folder that `ssd-cloud serve --model OUT` takes: the base with its adapter merged, and beside it
`adapter/` (peft's layout, float16, with a card), `training/` (checkpoint, loss.csv), `loss.png` and the held-out scores
in `card.json`. A run that was killed goes on from `training/`. Knows nothing about the terminal.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ssd_diffusion import packaged
from ssd_diffusion.errors import InvalidModel, TrainingError
from ssd_diffusion.models import folder
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.tokenizer import TOKENIZER_FILE, Tokenizer
from ssd_diffusion.training import data, loop, lora
from ssd_diffusion.training.evaluate import Scores, evaluate

from ssd_cloud.adapt_options import AdaptOptions, train_options
from ssd_cloud.own_text import read_own
from ssd_cloud.training_text import Texts, read_sources, split_documents, training_rows

_HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")


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
    wrapped = _adapter(model, options)
    tokenizer = Tokenizer.load(source)
    on_stage("reading the text")
    text, held = split_documents(read_sources(options.data, tokenizer))
    own = read_own(options.own, tokenizer)
    rows = training_rows(text, options, tokenizer, own)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    score = _scorer(held or text[0], options, on_stage)
    before = score(model, "scoring what is there")
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
    """A base to train, in float32: a model folder of ours or a plain decoder, with maps that can read states."""
    model = folder.load(source)[0] if (source / "model.json").is_file() else folder.from_pretrained(source)
    if model.maps_untouched:
        model.make_state_legible()
    return model


def _adapter(model: Ssd2Model, options: AdaptOptions) -> Any:
    """The adapter to train, on the model: a fresh one, or one to go on from.

    Raises:
        InvalidModel: the named adapter cannot be read, or does not fit the base.
    """
    if options.adapter is None:
        shape = lora.LoraOptions(rank=options.rank, alpha=2 * options.rank)
        if options.look_ahead:
            _add_transition(model, options.seed)
        return lora.attach(model, shape, seed=options.seed)
    folder_of = packaged.WEIGHTS if options.adapter in ("packaged", packaged.NAME) else Path(options.adapter)
    wrapped = lora.load_adapter(model, folder_of.expanduser())
    if options.look_ahead and model.transition is None:
        _add_transition(model, options.seed)
    lora.open_adapter(model)
    return wrapped


def _add_transition(model: Ssd2Model, seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.add_transition()


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
    lora.save_adapter(wrapped, model, out / "adapter", half=True)
    loop.plot(out / "loss.png", report.history)
    model.causal = wrapped.merge_and_unload()
    card = {
        "name": out.name, "base": options.base, "made": time.strftime("%Y-%m-%d", time.gmtime()),
        "adapter": options.adapter, "rank": wrapped.peft_config["default"].r, "block": options.block,
        "look_ahead": options.look_ahead, "right_side": options.right_side, "kept": options.kept,
        "steps": report.steps, "targets": report.targets,
        "minutes": round(report.elapsed_s / 60, 1), "data": [path.name for path in options.data],
        "heldout_before": scores[0] and scores[0].as_json(), "heldout_after": scores[1] and scores[1].as_json(),
    }  # fmt: skip
    _write_adapter_card(out / "adapter", card)
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    folder.save(model.cpu().to(dtype), out, name=out.name, tokenizer=source, card=card)


def _write_adapter_card(folder_of: Path, card: dict[str, Any]) -> None:
    """What the adapter is, with the SHA-256 of its files, by which they are checked where an adapter ships."""
    files = {path.name: packaged.sha256(path) for path in sorted(folder_of.iterdir()) if path.name != folder.CARD_FILE}
    (folder_of / folder.CARD_FILE).write_text(json.dumps(card | {"files": files}, indent=1) + "\n", encoding="utf-8")


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
