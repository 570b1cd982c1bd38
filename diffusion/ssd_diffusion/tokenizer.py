"""Text to token ids and back, and chat prompts, from the files of a model folder: tokenizer.json, tokenizer_config.json
and, where there is one, chat_template.jinja. Needs the `tokenizers` and `jinja2` packages, never transformers.

Text is data: a special token spelled out in a text or a message is encoded as ordinary characters, so that a document
cannot end a turn or open another. Only the chat template writes special tokens.

The fingerprint says whether two members may add their logits. It is the SHA-256 (hex) over the true vocabulary in id
order, added tokens included and padded rows of the model's matrices not: for each id from 0 to V - 1, the length of the
token's UTF-8 form as four bytes little-endian, then those bytes; an id without a token counts as the four bytes
ff ff ff ff. Merges do not enter: they change how a text is split, never what an id means.

Knows nothing about models, prompts' content or answers.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import numpy as np
import tokenizers
from ssd_kernels.types import I32

from ssd_diffusion.errors import InvalidModel

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_FILES = (TOKENIZER_FILE, CONFIG_FILE, TEMPLATE_FILE)

Message = Mapping[str, str]

_WINDOW = 64  # tokens the streaming decoder looks back over at most
_KEPT = 8  # of them, those it keeps when it moves on
_MARK_OPEN, _MARK_CLOSE = (
    "\ufdd0",
    "\ufdd1",
)  # noncharacters of Unicode: around special tokens that a message spells out


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """The tokenizer of a model folder; immutable, safe to share between threads.

    Attributes:
        vocab: true V: the largest id plus one, padded rows not counted.
        eos_ids: tokens that end an answer, ascending.
        bos_id: the token that opens a text, where the model has one.
        chat_template: jinja source, or None where the model knows no turns.
    """

    vocab: int
    eos_ids: tuple[int, ...]
    bos_id: int | None
    chat_template: str | None
    _special: Any = field(repr=False)  # tokenizers.Tokenizer that recognises special tokens in a text
    _plain: Any = field(repr=False)  # the same, special tokens as ordinary characters
    _names: Mapping[str, str] = field(repr=False)  # bos_token, eos_token, ... as the template knows them
    _control: re.Pattern[str] = field(repr=False)  # any special token, spelled out; the longest first
    _add_bos: bool = field(repr=False)

    @staticmethod
    def load(folder: Path) -> Tokenizer:
        """The tokenizer in a model or expert folder.

        Raises:
            InvalidModel: a file is missing or is not what it should be.
        """
        source = _read(folder / TOKENIZER_FILE)
        try:
            special, plain = tokenizers.Tokenizer.from_str(source), tokenizers.Tokenizer.from_str(source)
        except Exception as error:  # the package raises bare Exception for any malformed file
            raise InvalidModel(
                f"{folder / TOKENIZER_FILE} is not a tokenizer ({error}); fetch the model again"
            ) from error
        config = _config(folder / CONFIG_FILE)
        for one in (special, plain):
            one.no_padding()
            one.no_truncation()
        plain.encode_special_tokens = True
        names = _special_names(config)
        return Tokenizer(
            vocab=max(special.get_vocab(with_added_tokens=True).values(), default=-1) + 1,
            eos_ids=_eos_ids(config, names, special),
            bos_id=special.token_to_id(names["bos_token"]) if "bos_token" in names else None,
            chat_template=_template(folder, config),
            _special=special,
            _plain=plain,
            _names=names,
            _control=_control_tokens(special),
            _add_bos=bool(config.get("add_bos_token", False)) or _puts_in_front(special),
        )

    def encode(self, text: str, *, special: bool = False) -> I32:
        """Ids of a text, shape [n]; nothing is put in front or behind.

        Args:
            text: any string; lone surrogates become "?".
            special: recognise special tokens that the text spells out. Only for text written by this program.
        """
        clean = text.encode("utf-8", "replace").decode("utf-8")
        encoding = (self._special if special else self._plain).encode(clean, add_special_tokens=False)
        return np.array(encoding.ids, dtype=np.int32)

    def encode_many(self, texts: Sequence[str]) -> list[I32]:
        """What `encode` gives for each text, on all cores."""
        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        found = self._plain.encode_batch(clean, add_special_tokens=False)
        return [np.array(one.ids, dtype=np.int32) for one in found]

    def decode(self, ids: I32 | Sequence[int], *, special: bool = False) -> str:
        """Text of ids; special tokens are left out unless `special`. Bytes that are no UTF-8 become U+FFFD."""
        return str(self._special.decode([int(i) for i in ids], skip_special_tokens=not special))

    def token(self, token_id: int) -> str:
        """The vocabulary's own spelling of an id ("" where it has none)."""
        return str(self._special.id_to_token(int(token_id)) or "")

    @property
    def roles(self) -> dict[str, int]:
        """Ids of the named special tokens that the vocabulary holds: "bos", "eos", "pad", "unk" and their like."""
        found = {name.removesuffix("_token"): self._special.token_to_id(text) for name, text in self._names.items()}
        return {role: int(token_id) for role, token_id in found.items() if token_id is not None}

    @property
    def opening(self) -> I32:
        """What stands before a text that begins a context: the bos token of vocabularies that ask for it. [0 or 1]"""
        return np.array([] if self.bos_id is None or not self._add_bos else [self.bos_id], np.int32)

    def stream(self) -> StreamDecoder:
        """A decoder for an answer that arrives in pieces."""
        return StreamDecoder(self)

    def chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> I32:
        """Ids of a conversation, shape [n], written by the model's own template.

        Without a template the contents are joined by blank lines: a plain prompt.

        Args:
            messages: {"role": ..., "content": ...}, oldest first.
            add_generation_prompt: end with the opening of the assistant's turn.

        Raises:
            InvalidModel: the template is broken or refuses the messages.
        """
        if self.chat_template is None:
            ids = self.encode("\n\n".join(message["content"] for message in messages))
            if not len(ids) and self.bos_id is not None:
                return np.array([self.bos_id], np.int32)
            return np.concatenate([self.opening, ids])
        marked = [{key: self._mark(value) for key, value in message.items()} for message in messages]
        return self._encode_marked(self._render(marked, add_generation_prompt))

    def chat_text(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The conversation as text, for people to read. Raises as `chat`."""
        if self.chat_template is None:
            return "\n\n".join(message["content"] for message in messages)
        return self._render([dict(message) for message in messages], add_generation_prompt)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the true vocabulary in id order; see the module's first lines."""
        by_id = {int(i): str(token) for token, i in self._special.get_vocab(with_added_tokens=True).items()}
        return fingerprint_of(by_id.get(i) for i in range(self.vocab))

    @cached_property
    def _compiled(self) -> Any:
        environment = _environment()
        try:
            return environment.from_string(self.chat_template or "")
        except jinja2.TemplateError as error:
            raise InvalidModel(f"the model's chat template is broken ({error}); fetch the model again") from error

    def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        try:
            return str(
                self._compiled.render(messages=messages, add_generation_prompt=add_generation_prompt, **self._names)
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise InvalidModel(f"the model's chat template refuses these messages: {error}") from error

    def _mark(self, text: str) -> str:
        """Put marks around special tokens that a message spells out; marks in the message itself are dropped."""
        clean = text.replace(_MARK_OPEN, "").replace(_MARK_CLOSE, "")
        return self._control.sub(lambda found: _MARK_OPEN + found[0] + _MARK_CLOSE, clean)

    def _encode_marked(self, rendered: str) -> I32:
        """Encode the template's own text with special tokens, and marked tokens as ordinary characters."""
        head, *pieces = rendered.split(_MARK_OPEN)
        parts = [self.encode(head, special=True)]
        for piece in pieces:
            inside, _, after = piece.partition(_MARK_CLOSE)
            parts += [self.encode(inside), self.encode(after, special=True)]
        return np.concatenate(parts)


class StreamDecoder:
    """Turns ids that arrive in pieces into text, never splitting a character.

    What `push` and `finish` return, joined, is `Tokenizer.decode` of all the ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = 0  # characters of decode(self._ids) that have been returned

    def push(self, ids: I32 | Sequence[int]) -> str:
        """The text that these ids complete; may be empty while a character is unfinished."""
        new: list[str] = []
        for i in ids:
            self._ids.append(int(i))
            text = self._tokenizer.decode(self._ids)
            stable = len(text.rstrip("\ufffd"))
            if stable > self._shown:
                new.append(text[self._shown : stable])
                self._shown = stable
            if len(self._ids) > _WINDOW and stable == len(text):
                self._ids = self._ids[-_KEPT:]
                self._shown = len(self._tokenizer.decode(self._ids))
        return "".join(new)

    def finish(self) -> str:
        """What is left when no more ids come; unfinished characters become U+FFFD."""
        rest = self._tokenizer.decode(self._ids)[self._shown :]
        self._ids, self._shown = [], 0
        return rest


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's files from one model folder to another (the template only where there is one).

    Raises:
        InvalidModel: the source has no tokenizer.json.
    """
    if not (source / TOKENIZER_FILE).is_file():
        raise InvalidModel(f"{source} has no {TOKENIZER_FILE}; name a model folder")
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidModel(f"cannot read {path} ({error}); name a model folder with a tokenizer") from error


def _config(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        config = json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise InvalidModel(f"{path} is not JSON ({error}); fetch the model again") from error
    if not isinstance(config, dict):
        raise InvalidModel(f"{path} is not a tokenizer configuration; fetch the model again")
    return config


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    if (folder / TEMPLATE_FILE).exists():
        return _read(folder / TEMPLATE_FILE)
    inline = config.get("chat_template")
    if isinstance(inline, list):  # several named templates: the one called "default"
        inline = {str(one.get("name")): one.get("template") for one in inline}.get("default")
    return inline if isinstance(inline, str) else None


def _special_names(config: Mapping[str, Any]) -> dict[str, str]:
    names = {}
    for key in ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token"):
        value = config.get(key)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            names[key] = text
    return names


def _eos_ids(config: Mapping[str, Any], names: Mapping[str, str], tokenizer: _Vocabulary) -> tuple[int, ...]:
    listed = config.get("eos_token_id", [])
    ids = {int(i) for i in (listed if isinstance(listed, list) else [listed])}
    if "eos_token" in names:
        found = tokenizer.token_to_id(names["eos_token"])
        if found is None:
            raise InvalidModel(f"the tokenizer does not hold its own end token {names['eos_token']!r}; fetch it again")
        ids.add(int(found))
    return tuple(sorted(ids))


def _control_tokens(tokenizer: _Vocabulary) -> re.Pattern[str]:
    added = tokenizer.get_added_tokens_decoder().values()
    longest_first = sorted((str(one.content) for one in added if one.special and one.content), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _puts_in_front(tokenizer: _Vocabulary) -> bool:
    """Whether the post-processor opens a text with a token: where transformers keeps what OPT's add_bos_token says."""
    plain, whole = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    return len(whole) > len(plain) and list(whole[1 : 1 + len(plain)]) == list(plain)


class _Vocabulary(Protocol):
    """The methods of tokenizers.Tokenizer that the helpers above use."""

    def token_to_id(self, token: str) -> int | None: ...

    def get_added_tokens_decoder(self) -> Mapping[int, Any]: ...

    def encode(self, sequence: str, *, add_special_tokens: bool) -> Any: ...


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` blocks, which mark the assistant's words for training: rendered as they are."""

    tags: set[str] = {"generation"}  # noqa: RUF012 - jinja2 reads a plain set

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """The block's own body."""
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


def _environment() -> jinja2.Environment:
    """A sandbox with the globals and filters that published chat templates use."""

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: object, ensure_ascii: bool = False, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

    def strftime_now(form: str) -> str:
        return datetime.now().astimezone().strftime(form)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment


def fingerprint_of(tokens: Iterable[str | None]) -> str:
    """The fingerprint of a vocabulary given in id order (None: an id without a token)."""
    digest = hashlib.sha256()
    for token in tokens:
        raw = b"" if token is None else token.encode()
        digest.update(b"\xff\xff\xff\xff" if token is None else len(raw).to_bytes(4, "little") + raw)
    return digest.hexdigest()
