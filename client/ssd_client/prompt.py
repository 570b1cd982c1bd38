r"""What is in whose context: the public prompt for the core, everything for the expert.

`[[...]]` in a prompt marks words that only the expert sees (`\[[` writes the brackets themselves); `--private` and the
passages of the document index go to the expert alone. The core's context is made from the public text and nothing else.
Knows nothing about models, retrieval or the wire.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ssd_diffusion.errors import ContextOverflow
from ssd_diffusion.tokenizer import Tokenizer
from ssd_kernels.types import I32

from ssd_client.errors import BadInput, UsageError

NOTES_HEADING = "Answer with the help of these notes."
_MARKS = re.compile(r"\\\[\[|\[\[|\]\]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_MAX_PRIVATE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt with its private words apart.

    Attributes:
        public: what the core may see.
        full: what the expert sees; the private words in their places, the marks gone.
        hidden: the private words, in order.
    """

    public: str
    full: str
    hidden: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document, as the expert is shown it.

    Attributes:
        document: path of the document within its folder.
        place: title and headings above it, may be empty.
        text: the words.
        score: how well it fits the prompt; comparable within one answer only.
    """

    document: str
    place: str
    text: str
    score: float

    @property
    def title(self) -> str:
        """Document and place, for people."""
        return f"{self.document} ({self.place})" if self.place else self.document


@dataclass(frozen=True, slots=True, eq=False)
class Contexts:
    """Who sees what, as text and as the token ids that members start from.

    Attributes:
        core_text, core_ids: the core's context, and all of the prompt that ever leaves the device.
        expert_text, expert_ids: the expert's context: private text, passages, prompt.
        passages: the passages that fit.
        left_out: how many passages did not fit.
    """

    core_text: str
    core_ids: I32
    expert_text: str
    expert_ids: I32
    passages: tuple[Passage, ...]
    left_out: int


def parse_prompt(text: str) -> Prompt:
    """Split a prompt at its `[[...]]` marks.

    Raises:
        UsageError: it is empty, or a mark is not closed, opened twice, or leaves nothing public.
    """
    text = text.encode("utf-8", "replace").decode("utf-8")  # bytes of a command line that are no UTF-8
    if not _CONTROL.sub("", text).strip():
        raise UsageError("the prompt is empty; write what you want to know")
    public, full, hidden = [], [], []
    inside: str | None = None
    at = 0
    for mark in _MARKS.finditer(text):
        piece, at = text[at : mark.start()], mark.end()
        if mark.group() == "\\[[":
            piece += "[["
        elif mark.group() == "[[" and inside is not None:
            raise UsageError("a [[ stands inside [[...]]; close the first one, or write \\[[ for plain brackets")
        elif mark.group() == "]]" and inside is None:
            piece += "]]"
        full.append(piece)
        if inside is None:
            public.append(piece)
        else:
            inside += piece
        if mark.group() == "[[":
            inside = ""
        elif mark.group() == "]]" and inside is not None:
            hidden.append(inside)
            inside = None
    if inside is not None:
        raise UsageError("a [[ is not closed; add ]], or write \\[[ for plain brackets")
    full.append(text[at:])
    public.append(text[at:])
    shown = "".join(public)
    if hidden:
        shown = re.sub(r"[ \t]{2,}", " ", shown).strip()
    if not shown:
        raise UsageError("the whole prompt is private, so the core would see nothing; leave some words outside [[...]]")
    return Prompt(public=shown, full="".join(full), hidden=tuple(hidden))


def read_private(value: str) -> str:
    """The private text of `--private`: the text itself, or with a leading @ a file's content.

    Raises:
        BadInput: the file cannot be read, is not text, or is too large.
    """
    if not value.startswith("@"):
        return value.encode("utf-8", "replace").decode("utf-8")
    path = Path(value[1:])
    try:
        path = path.expanduser()
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):  # a pipe or device may never end
            raise BadInput(f"{path} is not a plain file; pass its text itself, as --private TEXT")
        if found.st_size > _MAX_PRIVATE_BYTES:
            raise BadInput(f"{path} is larger than 1 MiB; personalize its folder instead of passing it as context")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 text; pass a text file to --private") from error
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: ~ of nobody; ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"cannot read {path} ({reason}); pass --private TEXT or --private @FILE") from error


def build_contexts(
    tokenizer: Tokenizer,
    prompt: Prompt,
    *,
    private: Sequence[str],
    passages: Sequence[Passage],
    expert_room: int,
    core_room: int | None,
) -> Contexts:
    """Both contexts, with as many passages as the expert's window takes.

    Args:
        tokenizer: shared by the members.
        prompt: the user's words.
        private: texts the user passed by hand; always kept.
        passages: best first; kept while they fit.
        expert_room: tokens the expert's context may have (its window less the answer).
        core_room: the same for the core, or None when no core takes part.

    Raises:
        ContextOverflow: the prompt, or the prompt with the private texts, does not fit.
    """
    core_ids = tokenizer.chat([_user(prompt.public)])
    if core_room is not None and len(core_ids) > core_room:
        raise ContextOverflow(_too_long("the prompt", len(core_ids), "the core", core_room))
    kept: list[Passage] = []
    ids = tokenizer.chat(expert_messages(prompt, private, kept))
    if len(ids) > expert_room:
        what = "the prompt with its private text" if private or prompt.hidden else "the prompt"
        raise ContextOverflow(_too_long(what, len(ids), "the expert", expert_room))
    for passage in passages:
        longer = tokenizer.chat(expert_messages(prompt, private, [*kept, passage]))
        if len(longer) <= expert_room:
            kept.append(passage)
            ids = longer
    return Contexts(
        core_text=tokenizer.chat_text([_user(prompt.public)]),
        core_ids=core_ids,
        expert_text=tokenizer.chat_text(expert_messages(prompt, private, kept)),
        expert_ids=ids,
        passages=tuple(kept),
        left_out=len(passages) - len(kept),
    )


def expert_messages(prompt: Prompt, private: Sequence[str], passages: Sequence[Passage]) -> list[dict[str, str]]:
    """The expert's conversation: notes as the system's words, then the prompt."""
    notes = [*private, *(f"{passage.place or passage.document}: {passage.text}" for passage in passages)]
    if not notes:
        return [_user(prompt.full)]
    numbered = [f"[{i}] {note.strip()}" for i, note in enumerate(notes, 1)]
    return [{"role": "system", "content": "\n\n".join([NOTES_HEADING, *numbered])}, _user(prompt.full)]


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _too_long(what: str, tokens: int, who: str, room: int) -> str:
    return (
        f"{what} has {tokens} tokens and {who} has room for {max(0, room)} beside the answer; "
        "shorten the prompt or lower --max-tokens"
    )
