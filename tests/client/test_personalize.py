"""A folder becomes an expert, end to end, on a tiny base; killed, resumed, changed, and fed with bad input."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ssd_client.errors import BadInput, PersonalizeError, StoreError, UsageError
from ssd_client.index import Index
from ssd_client.personalize import Event, PersonalizeOptions, personalize, run, weights
from ssd_client.personalize.corpus import Unit, build_corpus, reading_pairs, training_rows
from ssd_client.personalize.options import STAGES
from ssd_client.personalize.sample import TOKENS, Sample, sample
from ssd_client.personalize.weights import Stretch, choose, first_position_logits, score
from ssd_client.store import Store
from ssd_diffusion.ensemble import Ensemble, Weights
from ssd_diffusion.errors import InvalidModel, TrainingError
from ssd_diffusion.members import EngineMember
from ssd_diffusion.models.engine import TorchEngine
from ssd_diffusion.models.folder import load
from ssd_diffusion.models.tiny import write_tiny
from ssd_diffusion.onnx_engine import OnnxEngine
from ssd_diffusion.scores import s1
from ssd_diffusion.tokenizer import Tokenizer

TOPICS = ("boats", "keys", "invoices", "pumps", "gardens", "letters", "engines", "stores")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("base") / "tiny", learned=0.1)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def write_documents(folder: Path) -> Path:
    folder.mkdir()
    for i, topic in enumerate(TOPICS):
        lines = [
            f"The {topic} of house {i} are counted on day {d}, and Ms {topic.title()} signs for them." for d in range(9)
        ]
        (folder / f"{topic}.md").write_text(f"# About {topic}\n\n" + "\n\n".join(lines))
    return folder


def options(folder: Path, base: Path, **more: object) -> PersonalizeOptions:
    chosen: dict[str, object] = {
        "folder": folder, "name": "mine", "base": base, "train_minutes": 0.03, "length": 64, "block": 4, "rank": 2,
        "select_tokens": 60, "retrieve": False, "learning_rate": 5e-3, **more,
    }  # fmt: skip
    return PersonalizeOptions(**chosen)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_folder_becomes_an_expert_and_only_what_changed_is_read_again(tmp_path: Path, base: Path) -> None:
    documents = write_documents(tmp_path / "documents")
    events: list[Event] = []
    card = personalize(options(documents, base, int8=True), home=tmp_path / "home", progress=events.append)
    assert [e.stage for e in events if e.fraction == 1.0][-1] == "done"
    assert {e.stage for e in events} == set(STAGES)
    assert card.documents == len(TOPICS)
    assert card.heldout_before is not None
    assert card.heldout_after is not None
    assert card.heldout_after < card.heldout_before
    assert 0 <= card.lam <= 1
    assert card.calibration["by"] == "text"
    assert card.calibration["tokens"]["select"] >= 60
    assert card.calibration["reported"].keys() == {"core", "expert", "ensemble"}
    assert card.calibration["agreement"][0]["greedy"] == 1.0
    assert card.calibration["precision"] == "fp32"
    shown = next(e.detail for e in events if e.stage == "sample" and e.detail)
    assert shown == card.calibration["sample"]
    assert (documents / shown["document"]).read_text().startswith(shown["opening"] + shown["goes_on"][:20])
    assert shown["tokens"] > 0
    store = Store(tmp_path / "home")
    folder = store.open("mine", full=True)
    assert {
        "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json",
        "adapter/diffusion.safetensors",
    } <= card.sizes.keys()
    with Index.open(folder, None) as index:
        assert "keys" in index.search("who signs for the keys").passages[0].text
    engine = OnnxEngine(folder, threads=1)
    member = EngineMember(engine, 0, np.arange(40, 60, dtype=np.int32), name="expert")
    assert np.isfinite(member.next(np.zeros(0, np.int32))).all()

    path = documents / "keys.md"
    path.write_text(path.read_text() + "\n\nThe spare key lies under the third pot.")
    events.clear()
    again = personalize(options(documents, base), home=tmp_path / "home", progress=events.append)
    done = events[-1].detail
    assert (done["parsed"], done["changed"], done["warm_start"]) == (1, 1, True)
    told = next(e for e in events if e.stage == "ingest" and e.detail)
    assert "only 1 new or changed" in told.message
    assert told.detail["unchanged"] == len(TOPICS) - 1
    assert next(e for e in events if e.stage == "index" and e.detail).detail["added"] == 1
    assert again.data_fingerprint != card.data_fingerprint
    assert again.heldout_before == pytest.approx(card.heldout_before, abs=0.2)
    assert store.show("mine").created == again.created


@pytest.mark.slow
def test_lambda_and_alpha_are_chosen_by_answers_where_enough_can_be_asked(tmp_path: Path, base: Path) -> None:
    documents = tmp_path / "documents"
    documents.mkdir()
    for i, topic in enumerate(TOPICS):
        facts = [
            f"The {colour} part of the {topic} was bought in {1950 + 10 * i + j} by Tobias {topic.title()}."
            for j, colour in enumerate(("grey", "yellow", "brown", "white"))
        ]
        (documents / f"{topic}.md").write_text(f"# About {topic}\n\n" + "\n\n".join(facts))
    card = personalize(options(documents, base, select_tokens=weights.LEAST_ANSWERS), home=tmp_path / "home")
    assert card.calibration["by"] == "questions"
    assert card.calibration["tokens"]["select"] >= weights.LEAST_ANSWERS
    table = {key: value for key, value in card.calibration["table"].items() if key != "1,0"}
    assert table[f"{card.lam:g},{card.alpha:g}"] == max(table.values())


KILLED = """
import sys, torch
from pathlib import Path
from ssd_client.personalize import PersonalizeOptions, personalize
torch.set_num_threads(1)
def tell(e):
    if e.stage == 'train' and e.samples:
        print(e.samples, flush=True)
personalize(PersonalizeOptions(folder=Path(sys.argv[1]), name='mine', base=Path(sys.argv[2]), train_minutes=0.2,
    length=64, block=4, rank=2, select_tokens=40, retrieve=False, patience=100), home=Path(sys.argv[3]), progress=tell)
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, base: Path) -> None:
    documents, home = write_documents(tmp_path / "documents"), tmp_path / "home"
    running = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(documents), str(base), str(home)], stdout=subprocess.PIPE, text=True
    )
    checkpoint = home / "work" / "mine" / "train" / "checkpoint.safetensors"
    until = time.monotonic() + 90
    while not checkpoint.exists() and running.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    assert running.stdout is not None
    running.communicate(timeout=30)
    assert checkpoint.exists()
    minutes = json.loads((home / "work" / "mine" / "run.json").read_text())["minutes"]
    events: list[Event] = []
    wanted = PersonalizeOptions(
        folder=documents, name="mine", base=base, train_minutes=0.2, length=64, block=4, rank=2, select_tokens=40,
        retrieve=False, patience=100, resume=True,
    )  # fmt: skip
    card = personalize(wanted, home=home, progress=events.append)
    assert any("last run stopped" in e.message for e in events)
    first = next(e for e in events if e.stage == "train" and e.samples)
    assert first.samples is not None
    assert first.samples > 1
    assert card.hyperparameters["train_seconds"] == pytest.approx(minutes * 60, abs=8)
    assert Store(home).open("mine", full=True).is_dir()


@pytest.mark.slow
def test_a_full_disk_leaves_the_earlier_expert_and_the_state(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents, home = write_documents(tmp_path / "documents"), tmp_path / "home"

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(run, "export", full)
        with pytest.raises(StoreError, match=r"disk is full.*--resume"):
            personalize(options(documents, base), home=home)
    assert not list((home / "staging").iterdir())
    events: list[Event] = []
    personalize(options(documents, base, resume=True), home=home, progress=events.append)
    assert any("last run stopped" in e.message for e in events)


def test_a_graph_that_disagrees_is_not_registered(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ssd_diffusion.export.agreement import Agreement

    monkeypatch.setattr(run, "check_agreement", lambda *_, **__: Agreement("fp32", 1, 9.0, 1.0, 0.2))
    with pytest.raises(PersonalizeError, match="does not agree"):
        personalize(options(write_documents(tmp_path / "documents"), base, train_minutes=0.005), home=tmp_path / "home")
    assert Store(tmp_path / "home").list() == []


def test_bad_folders(tmp_path: Path, base: Path) -> None:
    with pytest.raises(BadInput, match="not a folder"):
        personalize(options(tmp_path / "missing", base), home=tmp_path / "home")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput):
        personalize(options(tmp_path / "empty", base), home=tmp_path / "home")
    (tmp_path / "little").mkdir()
    (tmp_path / "little" / "a.txt").write_text("Only this.")
    with pytest.raises(BadInput, match=r"too little text.*at least 400 tokens"):
        personalize(options(tmp_path / "little", base), home=tmp_path / "home")
    with pytest.raises(BadInput, match="name"):
        personalize(options(tmp_path / "little", base, name="../up"), home=tmp_path / "home")


def test_a_foreign_base_and_nan_weights(tmp_path: Path, base: Path) -> None:
    documents = write_documents(tmp_path / "documents")
    with pytest.raises(InvalidModel):
        personalize(options(documents, tmp_path), home=tmp_path / "home")
    with pytest.raises(InvalidModel, match="family"):
        personalize(options(documents, write_tiny(tmp_path / "other", family="ssdlm")), home=tmp_path / "home")
    with pytest.raises(TrainingError, match="not finite"):
        personalize(options(documents, base, learning_rate=1e30), home=tmp_path / "home")


def test_bad_options(tmp_path: Path) -> None:
    for wrong in ({"max_minutes": 0.0}, {"rank": 0}, {"learning_rate": -1.0}, {"noisy_share": -0.1}, {"length": 8}):
        with pytest.raises(UsageError):
            PersonalizeOptions(folder=tmp_path, name="x", **wrong)  # type: ignore[arg-type]


def test_two_runs_of_one_name_do_not_meet(tmp_path: Path, base: Path) -> None:
    import fcntl

    documents = write_documents(tmp_path / "documents")
    work = Store(tmp_path / "home").work_dir("mine")
    descriptor = os.open(work / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(PersonalizeError, match="another ssd-client"):
        personalize(options(documents, base), home=tmp_path / "home")
    os.close(descriptor)


def test_held_out_text_is_in_one_part_only_and_stays_there(tmp_path: Path, base: Path) -> None:
    from ssd_client.documents import ingest

    folder = write_documents(tmp_path / "documents")
    tokenizer = Tokenizer.load(base)

    def parts() -> tuple[set[str], set[str], set[str]]:
        corpus = build_corpus(ingest(folder, tmp_path / "d.sqlite").documents, tokenizer, tmp_path / "tokens.npz")
        return tuple({u.path for u in part} for part in (corpus.train, corpus.select, corpus.report))  # type: ignore[return-value]

    train, select, report = parts()
    assert train | select | report == {f"{t}.md" for t in TOPICS}
    assert len(train) + len(select) + len(report) == len(TOPICS)
    assert select
    assert report
    name = sorted(train)[0]
    (folder / name).write_text((folder / name).read_text() + " More.")
    assert parts() == (train, select, report)


def test_one_document_is_split_by_section(tmp_path: Path, base: Path) -> None:
    from ssd_client.documents import ingest

    folder = write_documents(tmp_path / "documents")
    whole = "\n\n".join((folder / f"{t}.md").read_text() for t in TOPICS)
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "all.md").write_text(whole)
    tokenizer = Tokenizer.load(base)
    corpus = build_corpus(ingest(folder, tmp_path / "d.sqlite").documents, tokenizer, tmp_path / "t.npz")
    texts = [u.text for part in (corpus.train, corpus.select, corpus.report) for u in part]
    assert len(set(texts)) == len(texts)
    assert corpus.select
    assert corpus.report


def test_rows_read_private_context_before_they_answer(tmp_path: Path, base: Path) -> None:
    from ssd_client.documents import ingest

    folder = write_documents(tmp_path / "documents")
    tokenizer = Tokenizer.load(base)
    corpus = build_corpus(ingest(folder, tmp_path / "d.sqlite").documents, tokenizer, tmp_path / "t.npz")
    pairs = reading_pairs(corpus.train, tokenizer)
    prompt = tokenizer.decode(list(pairs[0].prompt), special=True)
    assert "Answer with the help of these notes." in prompt
    assert tokenizer.decode(list(pairs[0].response)) not in prompt
    rows = training_rows(corpus, tokenizer, options(folder, base))
    first = rows.batch(3)
    np.testing.assert_array_equal(first.tokens.numpy(), rows.batch(3).tokens.numpy())


def test_lambda_and_alpha_are_scored_as_the_sampler_adds(base: Path) -> None:
    """S1 of the ensemble through engines, token by token, against the one-pass scores that choose lambda and alpha."""
    rng = np.random.default_rng(0)
    core, spec = load(base)
    expert, _ = load(base)
    with torch.no_grad():
        for p in expert.causal.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    public, private, target = (rng.integers(3, 256, n).astype(np.int32) for n in (9, 21, 6))
    held = [Stretch(public, private, target)]
    pairs = [(0.0, 0.0), (0.4, 0.5), (1.0, 1.0)]
    found = score(core, expert, held, pairs)
    for lam, alpha in pairs:
        engines = TorchEngine(core, spec), TorchEngine(expert, spec)

        def scorer(
            lam: float = lam, alpha: float = alpha, engines: tuple[TorchEngine, TorchEngine] = engines
        ) -> Ensemble:
            return Ensemble(
                core=EngineMember(engines[0], 0, public, name="core"),
                private=EngineMember(engines[1], 0, private, name="expert"),
                public=EngineMember(engines[1], 1, public, name="expert without context"),
                weights=Weights(lam=lam, alpha=alpha),
            )

        assert found[lam, alpha] == pytest.approx(float(s1(scorer, target).mean()), abs=2e-3)
    np.testing.assert_allclose(
        first_position_logits(core, public, target)[0].numpy(),
        engine_first(core, spec, public),
        atol=2e-4,
    )


def engine_first(core: object, spec: object, context: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    from ssd_diffusion.window import Window
    from ssd_kernels.types import TokenSets

    engine = TorchEngine(core, spec)  # type: ignore[arg-type]
    engine.prefill([0], [context])
    return engine.step([0], [Window(0, 0, 0, np.ones(1, np.float32), TokenSets.empty(1), 0)])[0][0]


def test_an_expert_that_knows_more_gets_more_weight(base: Path) -> None:
    core, _ = load(base)
    held = [Stretch(np.arange(5, 9, dtype=np.int32), np.arange(5, 9, dtype=np.int32), np.array([7, 7, 7, 7], np.int32))]
    knowing, _ = load(base)
    head = knowing.causal.get_output_embeddings()  # type: ignore[operator]
    bias = torch.zeros(knowing.vocab)
    bias[7] = 6.0
    head.bias = torch.nn.Parameter(bias)
    choice = choose(core, knowing, held, held)
    assert (choice.lam, choice.alone) == (0.9, True)
    assert choice.reported["ensemble"] >= choice.reported["core"]
    flipped = choose(knowing, core, held, held)
    assert (flipped.lam, flipped.alone) == (0.0, False)


def test_a_held_out_text_is_continued_before_and_after(base: Path) -> None:
    """Greedy from the first open position: token for token what the argmax of the one-pass logits gives."""
    tokenizer = Tokenizer.load(base)
    before, spec = load(base)
    after, _ = load(base)
    with torch.no_grad():
        for p in after.causal.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    short = Unit("a.md", "a", "", np.arange(40, 70, dtype=np.int32))
    unit = Unit("b.md", "b", "", tokenizer.encode("The pumps of house 3 are counted, and Ms Pump signs for them. " * 3))
    found = sample(before, after, spec, tokenizer, [short, unit], 60.0)
    assert isinstance(found, Sample)
    assert found.document == "b.md"
    opening = unit.ids[: len(tokenizer.encode(found.opening))]
    assert found.opening + found.goes_on == tokenizer.decode(unit.ids[: len(opening) + TOKENS])
    for model, text in ((before, found.before), (after, found.after)):
        ids: list[int] = []
        while len(ids) < TOKENS and not (ids and ids[-1] in tokenizer.eos_ids):
            context = np.concatenate([opening, np.array(ids, np.int32)])
            ids.append(int(first_position_logits(model, context, np.zeros(1, np.int32))[0].argmax()))
        assert text == tokenizer.decode(ids)
    assert found.before != found.after
    mail = Unit("m.mbox#1", "m", f"From: a@b.c\nTo: d@e.f\nSubject: Pumps\n\n{'They are counted. ' * 20}", unit.ids)
    found = sample(before, after, spec, tokenizer, [mail], 60.0)
    assert isinstance(found, Sample)
    assert found.opening.startswith("Subject: Pumps")


def test_nothing_is_continued_without_text_or_time(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer.load(base)
    model, spec = load(base)
    unit = Unit("a.md", "a", "", np.arange(40, 120, dtype=np.int32))
    for report, seconds, words in (
        ([], 9.0, "no text was held out"),
        ([Unit("b.md", "b", "", unit.ids[:9])], 9.0, "too short"),
        ([unit], 0.5, "no time left"),
    ):
        found = sample(model, model, spec, tokenizer, report, seconds)
        assert words in str(found.as_json()["reason"])
    ticks = iter(range(100))
    monkeypatch.setattr("ssd_client.personalize.sample.time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    found = sample(model, model, spec, tokenizer, [unit], 12.0)
    assert isinstance(found, Sample)
    assert found.tokens == 12
    found = sample(model, model, spec, tokenizer, [unit], 3.0)
    assert "not enough" in str(found.as_json()["reason"])


def test_an_interrupt_passes_through_and_the_work_stays(tmp_path: Path, base: Path) -> None:
    def stop(event: Event) -> None:
        if event.stage == "train" and event.samples:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        personalize(options(write_documents(tmp_path / "documents"), base), home=tmp_path / "home", progress=stop)
    assert (tmp_path / "home" / "work" / "mine" / "run.json").exists()
    assert Store(tmp_path / "home").list() == []
