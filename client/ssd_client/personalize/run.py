"""A folder of documents becomes a registered expert, stage by stage; every stage can be killed and taken up again.

State between runs lies in the store's work folder: what was read, the index, tokens, the training checkpoint, and
`run.json`, which says for which documents and options the checkpoint is. Prints nothing: progress goes to a callback.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from ssd_diffusion import packaged
from ssd_diffusion.engine import ModelSpec
from ssd_diffusion.errors import InvalidModel, TrainingError
from ssd_diffusion.export.agreement import Agreement, check_agreement
from ssd_diffusion.export.onnx import choose as choose_graph
from ssd_diffusion.export.onnx import drop, export
from ssd_diffusion.graph_names import ONNX_DIR, Precision
from ssd_diffusion.models.folder import load
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.spec_file import model_id, read_spec, write_spec
from ssd_diffusion.tokenizer import Tokenizer, copy_tokenizer
from ssd_diffusion.training import lora
from ssd_diffusion.training.data import Pair
from ssd_diffusion.training.loop import Evaluation, Progress, TrainReport

from ssd_client.documents import Deduplicated, Ingested, dedupe, ingest
from ssd_client.errors import BadInput, ExpertNotFound, PersonalizeError, StoreError
from ssd_client.index import Index, Updated
from ssd_client.personalize import learn, weights
from ssd_client.personalize.asked import asked_pairs, asked_stretches
from ssd_client.personalize.corpus import Corpus, Unit, build_corpus, evaluation_stream, training_rows
from ssd_client.personalize.encoder_export import ensure_encoder
from ssd_client.personalize.options import Event, OnEvent, PersonalizeOptions, Stage
from ssd_client.personalize.sample import NoSample, Sample, sample
from ssd_client.retrieval import all_in, found_in
from ssd_client.store import ExpertCard, Store, check_name

RUN_FILE = "run.json"
_FORMAT = 1
_NOTES = 3
_NOTES_CHARS = 900
_RESERVE_MINUTES = 2.5  # of max_minutes, for sample, selection and export
_SAMPLE_S = 10.0
_SAMPLE_SHARE = 0.25  # of the time that is left: selection and export come after it

Watch = Callable[[Progress, Ssd2Model], None]
"""(where training stands, the model in training): for measurements. It must leave the model as it is."""


def personalize(
    options: PersonalizeOptions, *, home: Path, progress: OnEvent = lambda _: None, watch: Watch | None = None
) -> ExpertCard:
    """Make an expert from a folder and register it under its name, in place of an earlier one.

    Args:
        options: folder, name, and how.
        home: the folder of experts and models.
        progress: told of every step forward, in this thread.
        watch: shown the model after every training step, in this thread; its time counts as training.

    Raises:
        ClientError: one sentence for the user (no documents, too little text, full disk, a graph that disagrees).
        DiffusionError: the same, from below (a broken base, a loss that is not finite).
        KeyboardInterrupt: stopped; what was done is kept for `resume`.
    """
    check_name(options.name)
    transformers.utils.logging.disable_progress_bar()  # progress is told through events alone
    if not options.folder.is_dir():
        raise BadInput(f"{options.folder} is not a folder; name the folder with your documents")
    store = Store(home)
    work = store.work_dir(options.name)
    with _plain_faults(options), _alone(work), _threads(options.threads):
        return _Run(options, home, store, work, progress, watch).all()


@dataclass(slots=True)
class _Read:
    """What the folder gave."""

    ingested: Ingested
    unique: Deduplicated
    updated: Updated


@dataclass(slots=True)
class _Learned:
    """The trained model and how it got there."""

    model: Ssd2Model
    wrapped: Any
    report: TrainReport
    warm: bool
    before: dict[str, Any]
    after: dict[str, Any]
    held_out: tuple[str, ...]


@dataclass(slots=True)
class _Exported:
    """Which graph the device runs, and how each agrees with torch."""

    use: Precision
    agreement: list[Agreement]


@dataclass(slots=True)
class _Run:
    """One personalization."""

    options: PersonalizeOptions
    home: Path
    store: Store
    work: Path
    progress: OnEvent
    watch: Watch | None = None
    started_s: float = field(default_factory=time.monotonic)
    seconds: dict[str, float] = field(default_factory=dict)

    def all(self) -> ExpertCard:
        """Every stage, in order."""
        base = self._base()
        tokenizer, spec = Tokenizer.load(base), read_spec(base)
        with ExitStack() as stack:
            read, index = self._read(stack)
            corpus = build_corpus(
                read.unique.documents, tokenizer, self.work / f"tokens-{spec.tokenizer_fingerprint[:16]}.npz"
            )
            core, _ = load(base)
            learned = self._learn(base, core, spec, corpus, tokenizer, read, index)
            shown = self._sample(core, learned.model, spec, corpus, tokenizer)
            choice = self._select(core, learned.model, corpus, tokenizer, index)
            del core
            staging = self.store.staging()
            stack.callback(shutil.rmtree, staging, ignore_errors=True)
            exported = self._export(learned, spec, base, staging, corpus)
            return self._register(staging, base, spec, read, index, learned, choice, shown, exported)

    def _tell(self, stage: Stage, fraction: float, message: str = "", **more: Any) -> None:
        self.progress(Event(stage=stage, fraction=min(1.0, max(0.0, fraction)), message=message, **more))

    @contextmanager
    def _stage(self, stage: Stage, message: str) -> Iterator[None]:
        begun_s = time.monotonic()
        self._tell(stage, 0.0, message)
        yield
        self.seconds[stage] = round(time.monotonic() - begun_s, 2)
        self._tell(stage, 1.0)

    def _base(self) -> Path:
        with self._stage("base", "getting the base model ready"):
            base = self.options.base or packaged.ensure(self.home)
            if read_spec(base).family != "ssd2":
                raise InvalidModel(f"{base} is not a decoder of the ssd2 family; choose another --base")
        return base

    def _read(self, stack: ExitStack) -> tuple[_Read, Index]:
        with self._stage("ingest", f"reading {self.options.folder}"):
            ingested = ingest(
                self.options.folder, self.work / "documents.sqlite",
                progress=lambda p: self._tell("ingest", p.done / max(1, p.total)),
            )  # fmt: skip
            if not ingested.documents:
                raise BadInput(
                    f"{self.options.folder} holds no document that can be read; add text, Markdown, PDF or mail"
                )
            unique = dedupe(ingested.documents)
            detail = {
                "documents": len(unique.documents), "duplicates": len(unique.duplicates), "added": ingested.added,
                "changed": ingested.changed, "unchanged": ingested.unchanged, "removed": ingested.removed,
                "parsed": ingested.parsed, "skipped": [list(one) for one in ingested.skipped],
            }  # fmt: skip
            again = ingested.unchanged and ingested.parsed
            told = f"{len(unique.documents)} documents, {len(ingested.skipped)} files left out"
            told += f"; only {ingested.parsed} new or changed files were read" if again else ""
            self._tell("ingest", 1.0, told, detail=detail)
        with self._stage("index", "indexing passages"):
            encoder = ensure_encoder(self.home) if self.options.retrieve else None
            index = stack.enter_context(Index.create(self.work / "index", encoder))
            updated = index.update(unique.documents, progress=lambda done, of: self._tell("index", done / max(1, of)))
            detail = {"passages": updated.passages, "embedded": updated.embedded, "added": updated.added}
            told = f"{updated.passages} passages, {updated.embedded} of them embedded now"
            self._tell("index", 1.0, told, detail=detail)
        return _Read(ingested, unique, updated), index

    def _asked(self, index: Index, corpus: Corpus, tokenizer: Tokenizer) -> list[Pair]:
        """Questions about the documents that are learned from, among what the index finds for them."""
        if self.options.asked_share <= 0:
            return []
        return asked_pairs(corpus.train, all_in(index), partial(found_in, index), tokenizer, self.options.seed)

    def _learn(
        self, base: Path, core: Ssd2Model, spec: ModelSpec, corpus: Corpus, tokenizer: Tokenizer, read: _Read,
        index: Index,
    ) -> _Learned:  # fmt: skip
        options = self.options
        sizes = {"select": learn.SELECT_ROWS, "report": learn.REPORT_ROWS}
        streams = {name: evaluation_stream(getattr(corpus, name), tokenizer) for name in sizes}
        held = {name: learn.held_out_batches(streams[name], options.block, rows) for name, rows in sizes.items()}
        with self._stage("train", "learning from your documents"):
            asked = self._asked(index, corpus, tokenizer)
            minutes, resumed = self._plan_training(spec, read.ingested.fingerprint)
            before = learn.held_out_scores(core, held["report"])
            model, _ = load(base)
            wrapped, warm = learn.attach(model, options, self._earlier(spec))
            if resumed or warm:
                self._tell(
                    "train",
                    0.0,
                    "going on where the last run stopped" if resumed else "starting from the earlier expert",
                )
            report = learn.learn(
                model, training_rows(corpus, tokenizer, options, asked), held["select"], options, minutes=minutes,
                folder=self.work / "train", on_progress=lambda p: self._on_progress(p, model), on_eval=self._on_eval,
            )  # fmt: skip
            after = learn.held_out_scores(model, held["report"])
        scores = [{} if s is None else s.as_json() for s in (before, after)]
        seen = {unit.path for unit in (*corpus.train, *corpus.select)}
        held_out = tuple(sorted({unit.path for unit in corpus.report} - seen))
        return _Learned(model, wrapped, report, warm, scores[0], scores[1], held_out)

    def _on_progress(self, p: Progress, model: Ssd2Model) -> None:
        self._tell("train", p.fraction, seconds_left=p.remaining_s, loss=p.loss, samples=p.step)
        if self.watch is not None:
            self.watch(p, model)

    def _on_eval(self, e: Evaluation) -> None:
        note = "best so far" if e.best else "no better"
        self._tell(
            "train", 0.0, f"held-out loss {e.score:.3f} nats a token, {note}", detail={"step": e.step, "s1": e.score}
        )

    def _plan_training(self, spec: ModelSpec, fingerprint: str) -> tuple[float, bool]:
        """Minutes of training, and whether a checkpoint is taken up; writes run.json."""
        options, path, folder = self.options, self.work / RUN_FILE, self.work / "train"
        wanted = {
            "format": _FORMAT, "base": spec.model_id, "documents": fingerprint, "options": options.signature(),
        }  # fmt: skip
        saved = _read_json(path)
        if options.resume and all(saved.get(key) == value for key, value in wanted.items()) and folder.is_dir():
            return float(saved["minutes"]), True
        shutil.rmtree(folder, ignore_errors=True)
        spent = (time.monotonic() - self.started_s) / 60
        reserve = min(_RESERVE_MINUTES, 0.5 * options.max_minutes)
        minutes = min(options.train_minutes, max(0.1 * options.max_minutes, options.max_minutes - spent - reserve))
        folder.mkdir(mode=0o700)
        _write_json(path, {**wanted, "minutes": minutes})
        return minutes, False

    def _earlier(self, spec: ModelSpec) -> Path | None:
        """The adapter of an expert of this name that was made from the same base."""
        try:
            if self.store.show(self.options.name).base_model_id != spec.model_id:
                return None
            return self.store.open(self.options.name) / "adapter"
        except (ExpertNotFound, StoreError):
            return None

    def _sample(
        self, core: Ssd2Model, model: Ssd2Model, spec: ModelSpec, corpus: Corpus, tokenizer: Tokenizer
    ) -> Sample | NoSample:
        with self._stage("sample", "letting base and expert continue a text that neither has learned"):
            left_s = self.options.max_minutes * 60 - (time.monotonic() - self.started_s)
            shown = sample(core, model, spec, tokenizer, corpus.report, min(_SAMPLE_S, _SAMPLE_SHARE * left_s))
            told = f"nothing to show: {shown.reason}" if isinstance(shown, NoSample) else ""
            self._tell("sample", 1.0, told, detail=shown.as_json())
        return shown

    def _select(
        self, core: Ssd2Model, model: Ssd2Model, corpus: Corpus, tokenizer: Tokenizer, index: Index
    ) -> weights.Choice:
        with self._stage("select", "choosing how much the expert says, on this device"):
            kind, (select, report) = self._to_weigh(corpus, tokenizer, index)
            if not select:
                return weights.Choice(0.5, 0.0, float("nan"), {})
            choice = weights.choose(core, model, select, report, lambda done: self._tell("select", done), by=kind)
            self._tell("select", 1.0, f"lambda {choice.lam:g}, alpha {choice.alpha:g}", detail=choice.as_json())
        return choice

    def _to_weigh(
        self, corpus: Corpus, tokenizer: Tokenizer, index: Index
    ) -> tuple[weights.Kind, list[list[weights.Stretch]]]:
        """Answers about the half that selects and about the other, or stretches of them where too little is asked."""
        wanted, halves = self.options.select_tokens, (corpus.select, corpus.report)
        passages, find = all_in(index), partial(found_in, index)
        answers = [asked_stretches(half, passages, find, tokenizer, self.options.seed, wanted) for half in halves]
        if sum(len(one.target) for one in answers[0]) >= weights.LEAST_ANSWERS:
            return "questions", answers
        texts = [weights.stretches(half, tokenizer, wanted, partial(_other_passages, index)) for half in halves]
        return "text", [texts[0] or texts[1], texts[1]]

    def _export(self, learned: _Learned, spec: ModelSpec, base: Path, staging: Path, corpus: Corpus) -> _Exported:
        with self._stage("export", "writing the expert for onnxruntime"):
            adapter = staging / "adapter"
            lora.save_adapter(learned.wrapped, learned.model, adapter)
            learned.model.causal = learned.wrapped.merge_and_unload()
            copy_tokenizer(base, staging)
            identity = model_id(self.options.name, adapter, (lora.ADAPTER_FILES[0], lora.DIFFUSION_FILE))
            write_spec(staging, replace(spec, model_id=identity))
            onnx = staging / ONNX_DIR
            report = export(learned.model, onnx, int8=self.options.int8 or self.options.use_int8)
            self._tell("export", 0.5)
            texts = sorted((u.ids for u in (*corpus.select, *corpus.report)), key=len, reverse=True)[:4]
            wanted: list[Precision] = [p for p in ("fp32", "int8") if p in report.size_bytes]
            found = [check_agreement(learned.model, onnx, p, texts=texts, seed=self.options.seed) for p in wanted]
            if not found[0].ok:
                raise PersonalizeError(
                    f"the exported expert does not agree with the trained one (error {found[0].rms_error:.2g} nats); "
                    "run the same command with --resume, and report this if it stays"
                )
            if len(found) > 1 and not found[1].ok:
                drop(onnx, "int8")
            kept = {one.precision for one in found if one.ok}
            report = choose_graph(onnx, "int8" if self.options.use_int8 and "int8" in kept else "fp32")
        return _Exported(report.use, found)

    def _register(
        self, staging: Path, base: Path, spec: ModelSpec, read: _Read, index: Index, learned: _Learned,
        choice: weights.Choice, shown: Sample | NoSample, exported: _Exported,
    ) -> ExpertCard:  # fmt: skip
        with self._stage("register", "putting the expert into the store"):
            index.export(staging)
            card = ExpertCard(
                name=self.options.name, base=spec.model_id.split("@")[0], base_model_id=spec.model_id,
                created=datetime.now(UTC).isoformat(timespec="seconds"), documents=len(read.unique.documents),
                data_fingerprint=read.ingested.fingerprint, lam=choice.lam, alpha=choice.alpha,
                heldout_before=learned.before.get("s1"), heldout_after=learned.after.get("s1"),
                hyperparameters=self._hyperparameters(learned),
                calibration=_finite({
                    "how": "S1 on what is held out, base model as core, on this device", **choice.as_json(),
                    "heldout_before": learned.before, "heldout_after": learned.after,
                    "sample": shown.as_json(), "precision": exported.use,
                    "agreement": [
                        {"precision": a.precision, "rms_error_nats": a.rms_error, "max_error": a.max_error,
                         "greedy": a.greedy, "kept": a.ok} for a in exported.agreement
                    ],
                }),
            )  # fmt: skip
            card = self.store.register(staging, self.options.name, card)
            shutil.rmtree(self.work / "train", ignore_errors=True)
        self.seconds["all"] = round(time.monotonic() - self.started_s, 2)
        told = {"parsed": read.ingested.parsed, "changed": read.ingested.changed, "embedded": read.updated.embedded}
        detail = {"seconds": self.seconds, "warm_start": learned.warm, "base_folder": str(base), **told}
        self._tell("done", 1.0, f"expert {card.name} is ready", detail=detail)
        return card

    def _hyperparameters(self, learned: _Learned) -> dict[str, Any]:
        report = learned.report
        return {
            **self.options.signature(), "steps": report.steps, "targets": report.targets, "stopped": report.stopped,
            "best_step": report.best_step, "train_seconds": round(report.elapsed_s, 1), "warm_start": learned.warm,
            "seconds": dict(self.seconds), "heldout_documents": list(learned.held_out),
        }  # fmt: skip


def _other_passages(index: Index, unit: Unit, opening: str) -> list[str]:
    """Passages of other documents that speak to an opening, as the expert is shown them."""
    own = unit.path.split("#")[0]
    found = [p for p in index.search(opening, limit=3 * _NOTES + 5).passages if p.path.split("#")[0] != own]
    notes: list[str] = []
    for passage in found[:_NOTES]:
        if sum(map(len, notes)) + len(passage.full_text) <= _NOTES_CHARS:
            notes.append(passage.full_text)
    return notes


def _finite(value: Any) -> Any:
    """The same, with numbers that are not finite as None: a card holds plain JSON."""
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    scratch = path.with_name(f".{path.name}.tmp")
    scratch.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    scratch.replace(path)


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Hold the work folder; the lock is freed when the process ends, however it ends."""
    descriptor = os.open(work / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise PersonalizeError(
            f"another ssd-client is personalizing {work.name!r}; wait for it, or choose another --name"
        ) from error
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if count > 0:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _plain_faults(options: PersonalizeOptions) -> Iterator[None]:
    """One sentence for what the system refuses; what was done stays for --resume."""
    again = f"run the same command with --resume; nothing of {options.name!r} that was done is lost"
    try:
        yield
    except (OSError, sqlite3.Error, RuntimeError, TrainingError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "no space left" in str(error).lower()
        if full:
            raise StoreError(f"the disk is full; free some space and {again}") from error
        if isinstance(error, MemoryError) or "not enough memory" in str(error):
            raise PersonalizeError(f"there is not enough memory; close other programs and {again}") from error
        if isinstance(error, OSError):
            raise PersonalizeError(f"a file cannot be used ({error}); make it accessible and {again}") from error
        raise
