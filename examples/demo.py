"""The main job from end to end, with the same commands that a person types: `make demo`.

It makes an expert from the sample folder, starts a node, asks both for answers, shows what crossed the wire, and stops
the node. Everything lies under .demo/, apart from your own experts and settings: the device's part in .demo/device, the
node's in .demo/node. The answers are also written to .demo/summary.json. Exits with 1 when anything fails or an answer
is empty.

    python examples/demo.py [--max-minutes 4] [--ask QUESTION] [--check] [--json]

Knows nothing about how the commands do their work.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ROOT / "examples" / "harbour-and-pine"
NAME = "harbour-and-pine"
# Questions of examples/questions.jsonl whose reference answers stand only in the documents, from among those that the
# packaged pair can answer: it does not answer them all, see docs/personal.md.
QUESTIONS = ("hp-052", "hp-027", "hp-028")
NODE_READY_S = 300.0
NODE_STOP_S = 30.0
ANSWER_S = 300.0
PERSONALIZE_SPARE_S = 900.0
SIGN_OF_LIFE_S = 5.0
ANSWER_KEYS = (
    "text",
    "tokens",
    "steps",
    "forward_passes",
    "bytes_up",
    "bytes_down",
    "members",
    "shares",
    "passages",
    "privacy",
)


class DemoFailed(Exception):
    """A step of the demo did not do its work; `str()` says which and where to look."""


@dataclass(frozen=True)
class Asked:
    """A question, with the reference answers when it is one of the sample's."""

    question: str
    accept: tuple[str, ...] = ()

    def met_by(self, text: str) -> bool:
        """True when the text holds a reference answer, not merely as a part of longer words or numbers."""
        return any(re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE) for answer in self.accept)


@dataclass
class Demo:
    """The demo's folder, its environment and what it found out."""

    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)

    def environment(self, side: str) -> dict[str, str]:
        """The variables of a command: a home of its own, none of the user's settings."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SSD_")}
        empty = self.folder / "config.toml"
        empty.touch()
        return {**kept, "SSD_HOME": str(self.folder / side), "SSD_CONFIG": str(empty)}

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Notes how long a step took."""
        started = time.monotonic()
        yield
        self.seconds[what] = round(time.monotonic() - started, 1)


def say(text: str = "") -> None:
    """A line for the person who watches."""
    print(text, file=sys.stderr, flush=True)


def command(name: str, *arguments: str) -> list[str]:
    """One of the project's commands, from the environment that runs this script."""
    script = Path(sys.executable).with_name(name)
    if not script.exists():
        raise DemoFailed(f"{name} is not installed beside {sys.executable}; run `make setup`")
    return [str(script), *arguments]


def shown(arguments: list[str]) -> str:
    """A command as a person would type it."""
    relative = [os.path.relpath(a) if a.startswith(str(ROOT)) else a for a in arguments[1:]]
    return shlex.join([Path(arguments[0]).name, *relative])


def personalize(demo: Demo, minutes: float) -> dict[str, Any]:
    """Makes the expert; its own progress goes to the terminal. Returns its card."""
    arguments = command(
        "ssd-client", "personalize", str(DOCUMENTS), "--name", NAME, "--max-minutes", f"{minutes:g}"
    )  # fmt: skip
    say(f"\n$ {shown(arguments)}")
    try:
        done = subprocess.run(
            arguments, env=demo.environment("device"), stdout=2, stdin=subprocess.DEVNULL,
            timeout=minutes * 60 + PERSONALIZE_SPARE_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise DemoFailed(f"personalize was still running after {error.timeout:.0f} s") from error
    if done.returncode:
        raise DemoFailed(f"personalize ended with {done.returncode}")
    listed = run_json(demo, command("ssd-client", "list", "--json"), 60.0)
    for expert in listed:
        if expert["name"] == NAME:
            return dict(expert)
    raise DemoFailed("the new expert is not in `ssd-client list`")


def run_json(demo: Demo, arguments: list[str], deadline_s: float, **variables: str) -> Any:
    """Runs a command of the device and reads the JSON that it prints; a sign of life now and then."""
    environment = {**demo.environment("device"), **variables}
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    started = time.monotonic()
    while True:
        try:
            out, _ = process.communicate(timeout=SIGN_OF_LIFE_S)
            break
        except subprocess.TimeoutExpired:
            passed = time.monotonic() - started
            if passed > deadline_s:
                process.kill()
                process.communicate()
                raise DemoFailed(f"`{shown(arguments)}` was still running after {deadline_s:.0f} s") from None
            if not sys.stderr.isatty():  # on a terminal the command shows its own progress
                say(f"  ... {passed:.0f} s")
    if process.returncode:
        raise DemoFailed(f"`{shown(arguments)}` ended with {process.returncode}")
    try:
        return json.loads(out)
    except ValueError as error:
        raise DemoFailed(f"`{shown(arguments)}` printed no JSON: {out[:200]!r}") from error


@contextmanager
def node(demo: Demo) -> Iterator[dict[str, Any]]:
    """A node on a free port of this machine, for as long as the block runs. Yields what it printed when ready."""
    arguments = command("ssd-cloud", "serve", "--listen", "127.0.0.1:0", "--json")
    say(f"\n$ SSD_TOKEN=... {shown(arguments)} &")
    token = secrets.token_urlsafe(32)
    environment = {**demo.environment("node"), "SSD_TOKEN": token}
    share_models(demo.folder)
    log = demo.folder / "node.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            arguments, env=environment, stdout=subprocess.PIPE, stderr=errors, stdin=subprocess.DEVNULL,
            text=True,
        )  # fmt: skip
    try:
        with demo.timed("node start"):
            ready = wait_ready(process, log)
        say(f"  ready on {ready['listen']}: {ready['model']}, V {ready['v']}, B {ready['b']}")
        yield {**ready, "token": token}
    finally:
        stop(process)
        say("\nnode stopped")


def share_models(folder: Path) -> None:
    """Lets the node use the base model that the device has converted already: here both are on one machine."""
    mine, theirs = folder / "node" / "models", folder / "device" / "models"
    mine.parent.mkdir(exist_ok=True, mode=0o700)
    if theirs.is_dir() and not mine.exists():
        mine.symlink_to(theirs.resolve())


def wait_ready(process: subprocess.Popen[str], log: Path) -> dict[str, Any]:
    """The node's line of JSON, or a failure once it has ended or the deadline has passed."""
    lines: queue.Queue[str] = queue.Queue()
    assert process.stdout is not None
    threading.Thread(target=pass_on, args=(process.stdout, lines), daemon=True).start()
    started = time.monotonic()
    while (passed := time.monotonic() - started) < NODE_READY_S:
        try:
            line = lines.get(timeout=SIGN_OF_LIFE_S)
        except queue.Empty:
            say(f"  ... loading the core, {passed + SIGN_OF_LIFE_S:.0f} s")
            continue
        if not line:
            raise DemoFailed(
                f"the node ended with {process.wait(NODE_STOP_S)}: {log.read_text('utf-8')[-500:].strip()}"
            )
        try:
            return dict(json.loads(line))
        except ValueError as error:
            raise DemoFailed(f"the node's first line was no JSON; see {log}") from error
    raise DemoFailed(f"the node was not ready after {NODE_READY_S:.0f} s; see {log}")


def pass_on(source: IO[str], lines: queue.Queue[str]) -> None:
    """Every line of a pipe into a queue, so that reading it can have a deadline; an empty one at its end."""
    with source:
        for line in source:
            lines.put(line)
    lines.put("")


def stop(process: subprocess.Popen[str]) -> None:
    """SIGTERM, and SIGKILL for a node that does not follow it in time."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(NODE_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def ask(demo: Demo, ready: dict[str, Any], asked: Asked, *more: str) -> dict[str, Any]:
    """One answer by expert and core."""
    arguments = command(
        "ssd-client", "generate", asked.question, "--expert", NAME, "--node", ready["listen"],
        "--seed", "7", "--temperature", "0", "--max-tokens", "48", "--yes", "--json", *more,
    )  # fmt: skip
    say(f"\n$ SSD_TOKEN=... {shown(arguments)}")
    answer = dict(run_json(demo, arguments, ANSWER_S, SSD_TOKEN=ready["token"]))
    missing = [key for key in ANSWER_KEYS if key not in answer]
    if missing:
        raise DemoFailed(f"`generate --json` did not print {', '.join(missing)}")
    if not str(answer["text"]).strip():
        raise DemoFailed("the answer is empty")
    return answer


def report(asked: Asked, answer: dict[str, Any]) -> None:
    """The answer and what it cost, for the person who watches."""
    say(f"\n  {asked.question}")
    say(f"  > {' '.join(str(answer['text']).split())}")
    shares = ", ".join(f"{name} {share:.0%}" for name, share in answer["shares"].items())
    say(f"  members    {', '.join(answer['members'])}; share in the tokens: {shares}")
    say(f"  passages   {', '.join(sorted({passage_name(p) for p in answer['passages']})) or 'none'}")
    say(f"  sent       {answer['bytes_up']:,} bytes up, {answer['bytes_down']:,} bytes down")
    passes = json.dumps(answer["forward_passes"])
    say(f"  work       {answer['tokens']} tokens in {answer['steps']} steps, forward passes {passes}")


def passage_name(passage: Any) -> str:
    """Where a passage comes from."""
    if isinstance(passage, dict):
        return str(passage.get("document") or passage.get("title") or passage.get("path") or passage)
    return str(passage)


def questions(own: list[str]) -> list[Asked]:
    """The person's own questions, or those of the sample folder."""
    if own:
        return [Asked(question) for question in own]
    lines = (ROOT / "examples" / "questions.jsonl").read_text("utf-8").splitlines()
    known = {row["id"]: row for row in map(json.loads, lines)}
    return [Asked(known[i]["question"], (known[i]["answer"], *known[i]["accept"])) for i in QUESTIONS]


def run(demo: Demo, minutes: float, own: list[str]) -> dict[str, Any]:
    """The whole demo. Returns the summary."""
    with demo.timed("personalize"):
        expert = personalize(demo, minutes)
    answers: list[dict[str, Any]] = []
    with node(demo) as ready:
        for asked in questions(own):
            with demo.timed(f"answer {len(answers) + 1}"):
                answer = ask(demo, ready, asked)
            report(asked, answer)
            answers.append({"question": asked.question, "fact": asked.met_by(answer["text"]), **answer})
    return {"expert": expert, "answers": answers, "seconds": demo.seconds}


def check(summary: dict[str, Any]) -> None:
    """What a run must show: both members took part, bytes were counted, and a fact of the documents was told."""
    for answer in summary["answers"]:
        if len(answer["forward_passes"]) < 2 or min(answer["forward_passes"].values()) < 1:
            raise DemoFailed(f"not both members took part: {answer['forward_passes']}")
        if answer["bytes_up"] <= 0 or answer["bytes_down"] <= 0:
            raise DemoFailed("no bytes crossed the wire")
        if not answer["passages"]:
            raise DemoFailed("the expert was shown no passage")
    if not any(answer["fact"] for answer in summary["answers"]):
        raise DemoFailed("no answer told a fact of the documents")


def main(arguments: list[str] | None = None) -> int:
    """Reads the flags and runs the demo."""
    parser = argparse.ArgumentParser(
        description="Make an expert from the sample folder and ask it, with a core, for answers."
    )
    parser.add_argument("--max-minutes", type=float, default=4.0, help="longest training time (default 4)")
    parser.add_argument(
        "--ask", action="append", default=[], metavar="QUESTION", help="ask this instead; may be repeated"
    )
    parser.add_argument("--folder", type=Path, default=ROOT / ".demo", help="where everything is kept (default .demo)")
    parser.add_argument("--fresh", action="store_true", help="throw away what an earlier run left there")
    parser.add_argument("--check", action="store_true", help="also fail when the answers lack what they must show")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON on standard output")
    given = parser.parse_args(arguments)
    if given.fresh and (given.folder / "config.toml").exists():
        shutil.rmtree(given.folder)
    given.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        summary = run(Demo(given.folder.resolve()), given.max_minutes, given.ask)
        (given.folder / "summary.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", "utf-8")
        if given.check:
            check(summary)
    except DemoFailed as error:
        say(f"\ndemo: {error}")
        return 1
    except KeyboardInterrupt:
        say("\ndemo: stopped")
        return 130
    if given.json:
        print(json.dumps(summary, ensure_ascii=False))
    told = sum(answer["fact"] for answer in summary["answers"])
    times = ", ".join(f"{what} {seconds:g} s" for what, seconds in summary["seconds"].items())
    say(f"\ndemo: {len(summary['answers'])} answers, {told} with the fact of the documents; {times}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
