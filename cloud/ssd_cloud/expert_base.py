"""An expert's base in a core's vocabulary: members of an ensemble add their logits, so their ids must mean the same.

Rows of tokens that both vocabularies hold are copied, those of control tokens come from the token for the same
purpose, and all others start as the mean of the rows of their pieces. With text and a bound, the rows that were not
copied are then trained, together with a LoRA. OUT becomes a model folder, and counts as one from the moment that it is
complete. A run that was killed goes on from OUT/training. Knows nothing about the terminal.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ssd_diffusion import packaged, vocabulary
from ssd_diffusion.errors import InvalidModel, TrainingError
from ssd_diffusion.models.folder import CARD_FILE
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.spec_file import SPEC_FILE, read_spec
from ssd_diffusion.tokenizer import TOKENIZER_FILE
from ssd_diffusion.training import data, loop, lora, per_byte
from ssd_diffusion.training.new_rows import exchange_rows, open_rows

from ssd_cloud import expert_base_folder as place
from ssd_cloud.adapt import open_base, with_tokenizer
from ssd_cloud.adapt_options import AdaptOptions, train_options
from ssd_cloud.errors import UsageError
from ssd_cloud.opt_vocabulary import write_opt_tokenizer
from ssd_cloud.training_text import HELD_OUT_EVERY, Texts, tokenize, training_rows

NEXT_TOKEN_SHARE = 0.7
"""Of the batches: every token of such a row is a target, so the new rows of the vocabulary are met more often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertBaseOptions:
    """What to put into which vocabulary, and how to train it.

    Attributes:
        tokenizer: "opt", or a folder with a tokenizer (of a core, or tokenizer.json alone).
        vocab: the folder with OPT's vocab.json and merges.txt; for "opt".
        held_out: text to score on; with none, every twentieth document of the training data, if it has that many.
        scored_texts: most texts to score.
        training: `base` is "packaged" or a model folder, `out` the folder to make, `data` may be empty.
    """

    tokenizer: str
    training: AdaptOptions
    vocab: Path | None = None
    held_out: tuple[Path, ...] = ()
    scored_texts: int = 64


@dataclass(frozen=True, slots=True)
class Scored:
    """Next-token loss per byte on the same texts: the source in its own vocabulary, at the switch, after training."""

    source: per_byte.PerByte
    switched: per_byte.PerByte
    trained: per_byte.PerByte | None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "source": self.source.as_json(), "switched": self.switched.as_json(),
            "trained": self.trained and self.trained.as_json(),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Made:
    """What came out: the folder and its model id, rows by origin, how training went, scores (None: not asked for)."""

    folder: Path
    model_id: str
    fingerprint: str
    rows: dict[vocabulary.How, int]
    report: loop.TrainReport | None
    scored: Scored | None


@dataclass(frozen=True, slots=True)
class Watch:
    """Whom to tell: of a stage's beginning, of how much of it is done, and of every step of training."""

    stage: Callable[[str], None] = lambda _: None
    fraction: Callable[[float], None] = lambda _: None
    progress: Callable[[loop.Progress], None] | None = None


def expert_base(options: ExpertBaseOptions, home: Path, watch: Watch | None = None) -> Made:
    """Make an expert's base in another vocabulary.

    Raises:
        UsageError: options that do not go together, or an OUT that holds something else.
        InvalidModel: source or tokenizer cannot be read.
        TrainingError: no text, a loss that is not finite, or a checkpoint of another run.
    """
    watch = watch or Watch()
    _check(options)
    place.check(options.training.out)
    with tempfile.TemporaryDirectory(prefix="ssd-tokenizer-") as scratch:
        watch.stage("reading the vocabularies")
        tokenizer = tokenizer_folder(options.tokenizer, options.vocab, Path(scratch) / "tokenizer")
        source = _source_folder(options.training.base, home)
        return _make(options, source, tokenizer, watch)


def tokenizer_folder(name: str, vocab: Path | None, scratch: Path) -> Path:
    """A folder with the tokenizer.json of a vocabulary.

    Args:
        name: "opt" or a folder.
        vocab: of OPT's files.
        scratch: where to write one that does not exist in this form.

    Raises:
        UsageError: OPT's files are not named.
        InvalidModel: there is no such tokenizer.
    """
    if name == "opt":
        if vocab is None:
            raise UsageError(
                "OPT's vocabulary is not part of this project; give --vocab, or set SSD_OPT_VOCAB, to a folder with "
                "its vocab.json and merges.txt"
            )
        return write_opt_tokenizer(vocab.expanduser(), scratch)
    path = Path(name).expanduser()
    if not path.is_dir():
        raise InvalidModel(f"there is no folder {name}; give 'opt', or a folder with a model or a {TOKENIZER_FILE}")
    return path if (path / TOKENIZER_FILE).is_file() else with_tokenizer(path, scratch)


def _check(options: ExpertBaseOptions) -> None:
    training = options.training
    bounded = training.steps is not None or training.max_minutes is not None
    if bounded and not training.data:
        raise UsageError("there is nothing to train on; give --data, or leave out --steps and --max-minutes")
    if training.data and not bounded:
        raise TrainingError("training needs a bound; give --steps or --max-minutes")


def _source_folder(name: str, home: Path) -> Path:
    if name in ("packaged", packaged.NAME):
        return packaged.ensure(home)
    path = Path(name).expanduser()
    if not (path / TOKENIZER_FILE).is_file():
        raise InvalidModel(f"{name} is no model folder with a {TOKENIZER_FILE}; give 'packaged' or a model folder")
    return path


def _make(options: ExpertBaseOptions, source: Path, tokenizer: Path, watch: Watch) -> Made:
    if source.resolve() == options.training.out.resolve():
        raise UsageError(f"{options.training.out} is the source itself; name another folder to make")
    old, new = vocabulary.Vocabulary.load(source), vocabulary.Vocabulary.load(tokenizer)
    origins = vocabulary.origins(new, old)
    learned, held = _split(options, watch)
    if learned:
        place.claim(options.training, _identity(source), new.tokenizer.fingerprint, learned)
    watch.stage("reading the source")
    model = open_base(source)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    texts = _openings(held, options, model)
    before = _score(model, old, texts, "scoring the source in its own vocabulary", watch)
    exchange_rows(model, [one.ids for one in origins], new.roles)
    switched = _score(model, new, texts, "scoring it in the new vocabulary", watch)
    report, trained = None, None
    if learned:
        fresh = [i for i, one in enumerate(origins) if one.how != "copied"]
        report = _train(model, options, tokenize(learned, new.tokenizer), new, fresh, watch)
        trained = _score(model, new, texts, "scoring the trained one", watch)
    watch.stage("writing the model")
    scored = None if before is None or switched is None else Scored(before, switched, trained)
    rows = vocabulary.counts(origins)
    card = _card(options, source, new, rows, report, scored)
    spec = place.write(model, options.training.out, source, tokenizer, card, report)
    return Made(options.training.out, spec.model_id, spec.tokenizer_fingerprint, rows, report, scored)


def _split(options: ExpertBaseOptions, watch: Watch) -> tuple[list[data.Item], list[data.Item]]:
    """What is learned and what is scored, each empty where it was not asked for; the latter is never learned.

    Raises:
        TrainingError: what was named holds no text.
    """
    items, held = (_items(paths) for paths in (options.training.data, options.held_out))
    if held or not items:
        return items, held
    if len(items) < HELD_OUT_EVERY:
        watch.stage(f"nothing is scored: of less than {HELD_OUT_EVERY} documents none is held out; name some --heldout")
        return items, []
    order = [int(i) for i in np.random.default_rng(7).permutation(len(items))]
    kept = set(order[::HELD_OUT_EVERY])
    return [item for i, item in enumerate(items) if i not in kept], [items[i] for i in sorted(kept)]


def _items(paths: Sequence[Path]) -> list[data.Item]:
    items = list(data.read_items(paths))
    if paths and not items:
        raise TrainingError(f"there is no text in {paths[0]}; name .txt, .md or .jsonl files, or folders of these")
    return items


def _openings(held: Sequence[data.Item], options: ExpertBaseOptions, model: Ssd2Model) -> list[str]:
    """The beginnings of what is scored, short enough for the model whatever the vocabulary."""
    if not held:
        return []
    plain = (item if isinstance(item, str) else "\n\n".join(turn["content"] for turn in item) for item in held)
    config: Any = model.causal.config
    most_bytes = min(per_byte.MOST_BYTES, int(config.max_position_embeddings) - 1)
    return per_byte.openings(plain, most=options.scored_texts, most_bytes=most_bytes)


def _score(
    model: Ssd2Model, held: vocabulary.Vocabulary, texts: Sequence[str], stage: str, watch: Watch
) -> per_byte.PerByte | None:
    if not texts:
        return None
    watch.stage(stage)
    return per_byte.score(model, held.tokenizer, texts, start=held.start, on_fraction=watch.fraction)


def _train(
    model: Ssd2Model, options: ExpertBaseOptions, texts: Texts, new: vocabulary.Vocabulary, rows: Sequence[int],
    watch: Watch,
) -> loop.TrainReport:  # fmt: skip
    """Train a LoRA, the diffusion maps and some rows of the vocabulary; the LoRA is merged afterwards."""
    training = replace(options.training, next_token_share=NEXT_TOKEN_SHARE)
    batches = training_rows([texts], training, new.tokenizer)
    shape = lora.LoraOptions(rank=training.rank, alpha=2 * training.rank)
    wrapped = lora.attach(model, shape, seed=training.seed)
    open_rows(model, rows)
    watch.stage("training")
    report = loop.train(model, batches, train_options(training), on_progress=watch.progress)
    model.causal = wrapped.merge_and_unload()
    return report


def _card(
    options: ExpertBaseOptions, source: Path, new: vocabulary.Vocabulary, rows: dict[vocabulary.How, int],
    report: loop.TrainReport | None, scored: Scored | None,
) -> dict[str, Any]:  # fmt: skip
    training = options.training
    card: dict[str, Any] = {
        "name": training.out.resolve().name, "kind": place.KIND, "base": _identity(source),
        "licence": place.read(source / CARD_FILE, "licence") or "that of its base, whose card names none",
        "made": time.strftime("%Y-%m-%d", time.gmtime()), "rows": rows, "scored": scored and scored.as_json(),
        "vocabulary": {
            "from": "opt" if options.tokenizer == "opt" else Path(options.tokenizer).resolve().name,
            "fingerprint": new.tokenizer.fingerprint,
        },
    }  # fmt: skip
    if report is not None:
        card["training"] = {
            "steps": report.steps, "targets": report.targets, "minutes": round(report.elapsed_s / 60, 1),
            "rank": training.rank, "block": training.block, "data": [path.name for path in training.data],
        }  # fmt: skip
    return card


def _identity(source: Path) -> str:
    """The model id of a model folder; of another one its name."""
    return read_spec(source).model_id if (source / SPEC_FILE).is_file() else source.resolve().name
