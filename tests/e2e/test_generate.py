"""`ssd-client generate` against `ssd-cloud serve`, both as processes, with exported experts on onnxruntime."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from answering_support import TOKEN, NodeProcess, RecordingProxy, client, environment
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from ssd_client import answer
from ssd_client.errors import NodeMismatch
from ssd_client.options import GenerateOptions

pytestmark = pytest.mark.slow

QUESTION = "Who holds the key to the red cabinet?"
COMMON = ("--token", TOKEN, "--seed", "5", "--max-tokens", "20", "--block", "6", "--entropy-budget", "12", "--yes",
          "--expert", "anna", "--codec", "dense-f32", "--temperature", "1")  # fmt: skip
COMMAND = (sys.executable, "-m", "ssd_client.cli.main")
KEYS = {
    "text", "tokens", "steps", "core_steps", "forward_passes", "seconds", "first_seconds", "bytes_up", "bytes_down",
    "members", "passages", "privacy", "seed", "finish_reason",
}  # fmt: skip
BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "peft", "safetensors"):
            raise ImportError(f"{name} is blocked in this test")
sys.meta_path.insert(0, Blocker())
"""


@pytest.fixture
def options(node: NodeProcess) -> GenerateOptions:
    return GenerateOptions(
        prompt=QUESTION, expert="anna", node=node.target, token=TOKEN, seed=5, max_tokens=20, block=6,
        codec="dense-f32", temperature=1.0, entropy_budget=12.0, deadline_s=60.0, yes=True,
    )  # fmt: skip


def ask(home: Path, node: NodeProcess, *more: str, **env: str) -> dict[str, Any]:
    done = client(home, "generate", QUESTION, "--node", node.target, *COMMON, "--json", *more, **env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
    return json.loads(done.stdout)


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test node")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True).sign(key, hashes.SHA256())
    )  # fmt: skip
    pem, private = folder / "node.pem", folder / "node.key"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ))  # fmt: skip
    private.chmod(0o600)
    return pem, private


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The single sentence on stderr; nothing on stdout and no traceback."""
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("ssd-client: ")
    return lines[0]


def test_answers_without_torch_and_transformers(home: Path, node: NodeProcess, tmp_path: Path) -> None:
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(BLOCKER)
    probe = subprocess.run(
        [sys.executable, "-c", "import torch"], env=environment(home, PYTHONPATH=str(tmp_path / "hook")),
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "is blocked in this test" in probe.stderr
    got = ask(home, node, PYTHONPATH=str(tmp_path / "hook"))
    assert got.keys() >= KEYS
    assert got["members"] == ["core", "expert", "expert without context"]
    assert next(p["document"] for p in got["passages"]) == "staff/keys.md"
    assert got["core_steps"] == got["steps"] < got["tokens"]
    assert got["privacy"] == "open"
    entries = json.loads(client(home, "ledger", "--json", "--session", got["session"]).stdout)
    assert entries["totals"]["size_bytes"] == got["bytes_up"]
    doctor = client(home, "doctor", "--json", PYTHONPATH=str(tmp_path / "hook"))
    assert doctor.returncode == 0


def test_the_same_text_by_every_way(home: Path, node: NodeProcess) -> None:
    want = ask(home, node)
    assert ask(home, node)["text"] == want["text"]
    assert ask(home, node, "--wire", "unary")["text"] == want["text"]
    assert ask(home, node, SSD_KERNELS_BACKEND="numpy")["text"] == want["text"]
    processes = [
        subprocess.Popen(
            [*COMMAND, "generate", QUESTION, "--node", node.target, *COMMON, "--json"],
            env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(8)
    ]  # fmt: skip
    for process in processes:
        out, err = process.communicate(timeout=180)
        assert process.returncode == 0, err
        assert json.loads(out)["text"] == want["text"]


@pytest.mark.parametrize("decoder", ["diffusion", "ar"])
def test_a_killed_node_that_comes_back_costs_time_and_not_the_text(
    options: GenerateOptions, home: Path, models: dict[str, Path], tmp_path: Path, decoder: Any
) -> None:
    options = replace(options, decoder=decoder)
    want = answer.generate(options, home=home)
    with NodeProcess(tmp_path / "node", models["core"]) as mortal:
        mortal.start()
        killed = []

        def progress(now: Any) -> None:
            if now.steps == 3 and not killed:
                killed.append(True)
                mortal.kill()
                threading.Thread(target=mortal.start).start()

        got = answer.generate(replace(options, node=mortal.target), home=home, on_progress=progress)
        assert killed
        assert got.text == want.text
        assert (got.reconnects, got.notes) == (1, ())
        assert got.core_steps == want.core_steps


@pytest.mark.parametrize("how", ["kill", "freeze"])
def test_a_node_that_stays_away_or_silent_leaves_the_expert(
    options: GenerateOptions, home: Path, models: dict[str, Path], tmp_path: Path, how: str
) -> None:
    with NodeProcess(tmp_path / "node", models["core"]) as mortal:
        mortal.start()

        def progress(now: Any) -> None:
            if now.steps == 3:
                getattr(mortal, how)()

        started = time.monotonic()
        got = answer.generate(replace(options, node=mortal.target, deadline_s=4.0), home=home, on_progress=progress)
        assert time.monotonic() - started < 40
    assert got.core_steps == 3
    assert got.tokens == 20 or got.finish_reason == "stop"
    assert "the expert went on alone" in got.notes[0]
    assert len(got.notes) == 1


def test_another_model_in_the_nodes_place_is_not_taken_for_the_first(
    options: GenerateOptions, home: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    with NodeProcess(tmp_path / "node", models["core"]) as mortal:
        mortal.start()
        again: list[threading.Thread] = []

        def progress(now: Any) -> None:
            if now.steps == 3 and not again:
                mortal.kill()
                again.append(threading.Thread(target=mortal.start, args=(models["other"],)))
                again[0].start()

        got = answer.generate(replace(options, node=mortal.target), home=home, on_progress=progress)
        again[0].join(60)
    assert got.core_steps == 3
    assert "went on alone" in got.notes[0]


def test_one_way_sends_the_same_bytes_for_two_folders(options: GenerateOptions, home: Path, node: NodeProcess) -> None:
    sent, texts = [], []
    for expert, private in (("anna", ()), ("bert", ()), ("anna", ("The cabinet is blue.",))):
        with RecordingProxy(node.target) as proxy:
            got = answer.generate(
                replace(options, expert=expert, private=private, privacy="one-way", node=proxy.target), home=home
            )
            sent.append(list(proxy.sent))
        assert not any("lost" in note for note in got.notes)
        texts.append(got.text)
    assert sent[0] == sent[1] == sent[2]
    assert len(sent[0]) == 2
    assert len(set(texts)) == 3


def test_tls_with_the_nodes_own_certificate(home: Path, models: dict[str, Path], tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    with NodeProcess(tmp_path / "n", models["core"], "--tls-cert", str(certificate), "--tls-key", str(key)) as node:
        node.start()
        got = ask(home, node, "--ca", str(certificate))
        assert got["notes"] == []
        assert got["core_steps"] == got["steps"]
        plain = ask(home, node)  # this machine without --ca: plaintext, which the node does not speak
        assert "--ca" in plain["notes"][0]
        assert plain["members"] == ["expert", "expert without context"]
        other, _ = make_certificate(tmp_path / "n")
        assert ask(home, node, "--ca", str(other))["privacy"] == "offline"


@pytest.mark.parametrize(
    "more", [("--steps", "5"), ("--projection", "multi-hot", "--steps", "3"), ("--temperature", "0")]
)
def test_fixed_blocks_and_other_projections(home: Path, node: NodeProcess, more: tuple[str, ...]) -> None:
    online = ("--node", node.target, "--token", TOKEN, "--yes")
    for where in (("--offline",), online, (*online, "--privacy", "one-way")):
        done = client(home, "generate", QUESTION, "--expert", "anna", *where, "--json", "--decoder", "ssdlm",
                      "--block", "4", "--max-tokens", "10", "--seed", "1", *more)  # fmt: skip
        assert done.returncode == 0, done.stderr
        got = json.loads(done.stdout)
        assert got["tokens"] == 10 or got["finish_reason"] == "stop"
        assert len(got["grid"]) == (int(more[-1]) if "--steps" in more else 50)
        assert where[0] == "--offline" or got["core_steps"] > 0


def test_a_node_of_another_tokenizer_is_refused(home: Path, models: dict[str, Path], tmp_path: Path) -> None:
    with NodeProcess(tmp_path / "node", models["foreign"]) as foreign:
        foreign.start()
        done = client(home, "generate", QUESTION, "--node", foreign.target, *COMMON)
    assert done.returncode == NodeMismatch.exit_code == 1
    assert "tokenizer" in one_line(done)


def test_ctrl_c_ends_at_once_with_130_and_loses_nothing(home: Path, node: NodeProcess) -> None:
    for delay_s, privacy in ((None, "open"), (None, "one-way"), (0.3, "open"), (1.0, "open")):
        for seed in range(12):  # a random model may end its answer before the signal comes: then another seed
            code, out, err = _stopped(home, node, delay_s, privacy, seed)
            if code != 0:
                break
            assert out, "ended well without an answer"
        if delay_s is not None and code == -signal.SIGINT:
            continue  # before Python could listen
        assert code == 130
        assert out == ""
        assert err.strip() == "ssd-client: stopped; nothing was lost"
    assert json.loads(client(home, "list", "--json").stdout)[0]["name"] == "anna"
    assert ask(home, node)["finish_reason"] in ("stop", "length")


def _stopped(home: Path, node: NodeProcess, delay_s: float | None, privacy: str, seed: int) -> tuple[int, str, str]:
    """An answer stopped after `delay_s`, or once messages have gone to the node: exit status, output and errors."""
    before, end = _messages(home), time.monotonic() + 60
    process = subprocess.Popen(
        [*COMMAND, "generate", QUESTION, "--node", node.target, *COMMON, "--seed", str(seed),
         "--max-tokens", "900", "--privacy", privacy, "--entropy-budget", "0"],
        env=environment(home) | {"PYTHONFAULTHANDLER": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    if delay_s is None:
        while _messages(home) < before + 2 and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
    else:
        time.sleep(delay_s)
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    try:
        out, err = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # faulthandler says where it stood
        pytest.fail(f"ctrl-C did not stop it (delay {delay_s}, {privacy}): {process.communicate(timeout=30)[1]}")
    assert time.monotonic() - sent < 10
    return process.returncode, out, err


def _messages(home: Path) -> int:
    try:
        with sqlite3.connect(home / "ledger.sqlite", timeout=5) as db:
            return int(db.execute("SELECT COUNT(*) FROM messages").fetchone()[0])
    except sqlite3.Error:
        return 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["generate", "hi", "--expert", "nobody", "--offline"], 2, "known are: anna, bert"),
        (["generate", "hi", "--offline"], 2, "choose one with --expert"),
        (["generate", "hi", "--expert", "anna", "--steps", "0", "--offline"], 2, "--steps"),
        (["generate", "", "--expert", "anna", "--offline"], 2, "empty"),
        (["generate", "a [[b", "--expert", "anna", "--offline"], 2, "not closed"),
        (["generate", "word " * 1000, "--expert", "anna", "--offline"], 2, "shorten the prompt"),
        (["generate", "hi", "--expert", "anna", "--private", "@/no/such", "--offline"], 2, "/no/such"),
        (["generate", "hi", "--expert", "anna", "--node", "a b"], 2, "HOST:PORT"),
        (["generate", "hi", "--expert", "anna", "--codec", "zip", "--offline"], 2, "--codec"),
        (["show", "nobody"], 2, "nobody"),
        (["rm", "nobody", "--yes"], 2, "nobody"),
        (["rm", "anna"], 2, "--yes"),
    ],
)
def test_bad_input_is_one_sentence(home: Path, arguments: list[str], code: int, words: str) -> None:
    done = client(home, *arguments)
    assert done.returncode == code, done.stderr
    assert words in one_line(done)


def test_consent_is_needed_once(home: Path, node: NodeProcess) -> None:
    arguments = ["generate", QUESTION, "--node", node.target, *COMMON]
    arguments.remove("--yes")
    done = client(home, *arguments)
    assert done.returncode == 2
    assert "--dry-run" in one_line(done)
    dry = client(home, *arguments, "--dry-run")
    assert dry.returncode == 0
    assert "Nothing was sent." in dry.stdout
    assert "Ilse Brandt" in dry.stdout
    leaves = json.loads(client(home, *arguments, "--dry-run", "--json").stdout)
    assert "Ilse" not in json.dumps(leaves["leaves"]["public_text"])
    assert client(home, *arguments, SSD_YES="1").returncode == 0
    assert client(home, *arguments).returncode == 0


def test_flag_beats_variable_beats_file(home: Path, node: NodeProcess, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('expert = "anna"\noffline = true\n[generate]\nmax-tokens = 4\nseed = 1\n')
    env = {"SSD_CONFIG": str(config)}
    one = json.loads(client(home, "generate", "hi", "--json", **env).stdout)
    assert (one["expert"], one["tokens"] <= 4, one["seed"]) == ("anna", True, 1)
    two = json.loads(client(home, "generate", "hi", "--json", SSD_SEED="2", **env).stdout)
    assert two["seed"] == 2
    three = json.loads(client(home, "generate", "hi", "--json", "--seed", "3", SSD_SEED="2", **env).stdout)
    assert three["seed"] == 3
    config.write_text("expret = 'anna'\n")
    done = client(home, "generate", "hi", **env)
    assert done.returncode == 2
    assert "did you mean 'expert'" in one_line(done)


def test_damaged_experts_are_refused_and_doctor_says_so(home: Path) -> None:
    card = json.loads(client(home, "show", "anna", "--json").stdout)
    folder = next(
        p for p in (home / "objects").iterdir() if json.loads((p / "card.json").read_text())["name"] == "anna"
    )
    assert card["name"] == "anna"
    weights = next(p for p in (folder / "onnx").iterdir() if p.name == "model.onnx")
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    done = client(home, "generate", "hi", "--expert", "anna", "--offline")
    assert done.returncode == 1
    assert "model.onnx" in one_line(done)
    doctor = client(home, "doctor", "--json")
    assert doctor.returncode == 1
    assert any(c["what"] == "expert anna" and c["status"] == "broken" for c in json.loads(doctor.stdout)["checks"])
    assert client(home, "rm", "anna", "--yes").returncode == 0
    assert [one["name"] for one in json.loads(client(home, "list", "--json").stdout)] == ["bert"]
    assert client(home, "generate", "hi", "--offline", "--max-tokens", "3").returncode == 0  # the only one left


def test_doctor_asks_the_node(home: Path, node: NodeProcess) -> None:
    good = client(home, "doctor", "--node", node.target, "--token", TOKEN)
    assert good.returncode == 0
    assert "tiny-llama" in good.stdout
    bad = client(home, "doctor", "--node", "127.0.0.1:9")
    assert bad.returncode == 1
    assert "cannot be reached" in bad.stdout


def test_help_is_quick_and_a_closed_pipe_is_no_error(home: Path) -> None:
    started = time.process_time_ns()
    times = []
    for _ in range(3):
        before = os.times()
        assert client(home, "--help").returncode == 0
        after = os.times()
        times.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(times) < 0.8, (times, started)
    assert client(home, "--version").stdout.startswith("ssd-client ")
    shell = f"{sys.executable} -m ssd_client.cli.main generate --help | head -n 1"
    done = subprocess.run(["bash", "-c", shell], env=environment(home), capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr


def test_a_home_that_others_can_read_is_noticed(home: Path) -> None:
    home.chmod(0o755)
    done = client(home, "doctor", "--json")
    assert done.returncode == 1
    shutil.rmtree(home / "objects")
    assert client(home, "list").returncode == 0
