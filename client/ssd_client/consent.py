"""What leaves this device, said before it does, and the user's agreement to it.

Agreement is asked once for each node and privacy mode, and kept in the ledger. Knows nothing about how it is shown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ssd_client.errors import ConsentNeeded
from ssd_client.ledger import Ledger

Privacy = Literal["open", "one-way"]
Ask = Callable[["Disclosure"], bool]

_READS = {
    "open": "The node reads the answer as it forms, private facts in it included, and could estimate the expert's "
    "distributions from repeated samples.",
    "one-way": "The node writes a text of its own and never learns the answer. What is sent is byte-identical whatever "
    "your documents are.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Disclosure:
    """Everything about one answer that a node would see, and what it would not.

    Attributes:
        node: "HOST:PORT".
        encrypted: whether the connection is TLS.
        model: the node's model, or None before it was asked.
        privacy: the mode.
        public_text: the core's context as text: the public prompt in the model's own form.
        prompt_tokens: its length in tokens.
        settings: the public settings that are sent with it, by name.
        hidden: how many private marks of the prompt stay.
        private_texts: how many texts given by hand stay.
        passages: titles of the passages that stay.
    """

    node: str
    encrypted: bool
    model: str | None
    privacy: Privacy
    public_text: str
    prompt_tokens: int
    settings: dict[str, str]
    hidden: int = 0
    private_texts: int = 0
    passages: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """The node as agreements name it."""
        return f"{'tls' if self.encrypted else 'plain'}://{self.node}"

    @property
    def sent_once(self) -> list[str]:
        """What goes up when the answer begins."""
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        return [
            f"the prompt below, as {self.prompt_tokens} token ids",
            f"settings: {settings}",
            "a key for shared noise, made from the seed; names of the model and tokenizer; your access token",
        ]

    @property
    def sent_each_step(self) -> list[str]:
        """What goes up at every step."""
        if self.privacy == "one-way":
            return []
        lines = ["the estimate of the open positions, as token ids, and which of them are accepted"]
        if self.settings.get("codec", "").startswith("top-k"):
            lines.append("where the node's packed logits were too rough for the sum: the wish for more of them")
        return lines

    @property
    def stays(self) -> list[str]:
        """What does not leave the device."""
        lines = ["your documents, the expert's weights, raw logits, and the key of the random draws"]
        if self.passages:
            lines.append(f"{len(self.passages)} passages: {', '.join(self.passages)}")
        if self.hidden:
            lines.append(f"{self.hidden} private part(s) of the prompt, marked [[...]]")
        if self.private_texts:
            lines.append(f"{self.private_texts} private text(s) given with --private")
        return lines

    @property
    def consequence(self) -> str:
        """What the node can learn in this mode."""
        return _READS[self.privacy]

    def to_json(self) -> dict[str, object]:
        """The same for programs."""
        return {
            "node": self.node,
            "encrypted": self.encrypted,
            "model": self.model,
            "privacy": self.privacy,
            "public_text": self.public_text,
            "prompt_tokens": self.prompt_tokens,
            "settings": self.settings,
            "sent_once": self.sent_once,
            "sent_each_step": self.sent_each_step,
            "stays": self.stays,
            "consequence": self.consequence,
        }


def require(disclosure: Disclosure, ledger: Ledger, *, yes: bool, ask: Ask | None) -> None:
    """Make sure that the user agreed to send this to this node, and note it.

    Args:
        disclosure: what would leave.
        ledger: where agreements are kept.
        yes: agreed beforehand (a program, or --yes).
        ask: shows the disclosure and returns the user's answer; None when nobody can be asked.

    Raises:
        ConsentNeeded: nobody agreed.
    """
    if ledger.consented(node=disclosure.identity, privacy=disclosure.privacy) is not None:
        return
    if not yes:
        if ask is None:
            raise ConsentNeeded(
                f"nothing was sent to {disclosure.node}: look at what would leave with --dry-run, then agree with --yes"
            )
        if not ask(disclosure):
            raise ConsentNeeded(f"nothing was sent to {disclosure.node}; use --offline to answer without a node")
    shown = "; ".join([*disclosure.sent_once[1:], *disclosure.sent_each_step])
    ledger.consent(node=disclosure.identity, privacy=disclosure.privacy, shown=shown)
