"""The pair under test: a core and an expert in this process, and the passages that fit a question.

The same code that answers on a device and serves on a node opens them. Knows nothing about metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ssd_client.options import GenerateOptions, decode_params, with_drafts
from ssd_client.prompt import Contexts, Passage, build_contexts, parse_prompt
from ssd_diffusion.engine import Engine
from ssd_diffusion.ensemble import Ensemble, Review, Weights
from ssd_diffusion.lookahead import Drafter
from ssd_diffusion.members import EngineMember
from ssd_diffusion.sampler import DecodeParams
from ssd_diffusion.tokenizer import Tokenizer
from ssd_kernels.types import I32

System = Literal["core", "expert", "ensemble"]
DecoderKind = Literal["diffusion", "ar"]

Retrieve = Callable[[str], Sequence[Passage]]


@dataclass(frozen=True, slots=True)
class Pair:
    """Core and expert.

    Attributes:
        core: one slot is used.
        expert: two slots: with and without private context.
        tokenizer: shared.
        weights: lambda and alpha as the expert's card has them.
        retrieve: passages for a text, best first.
        drafter: what adds to drafts what the tokens before say; None: nothing is drafted.
        about: settings of expert and core, for the report.
    """

    core: Engine
    expert: Engine
    tokenizer: Tokenizer
    weights: Weights
    retrieve: Retrieve
    drafter: Drafter | None = None
    about: str = ""

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer of either."""
        return tuple(sorted({*self.core.spec.eos_ids, *self.expert.spec.eos_ids}))

    def contexts(self, question: str, *, answer_room: int, passages: Sequence[Passage] | None = None) -> Contexts:
        """Both contexts for a question, passages included."""
        found = self.retrieve(question) if passages is None else passages
        return build_contexts(
            self.tokenizer,
            parse_prompt(question),
            private=(),
            passages=found,
            expert_room=self.expert.spec.max_context - answer_room,
            core_room=self.core.spec.max_context - answer_room,
        )

    def params(self, decoder: DecoderKind, *, max_tokens: int, projection: Literal["greedy", "sample"]) -> DecodeParams:
        """The client's defaults for a decoder."""
        options = GenerateOptions(prompt="-", decoder=decoder, max_tokens=max_tokens, projection=projection)
        options = with_drafts(options, taught=self.drafter is not None, decoders=None)
        return decode_params(options, self.core.spec, self.eos_ids)

    @contextmanager
    def open(
        self, system: System, core_ids: I32, expert_ids: I32, *, review: Review | None = None
    ) -> Iterator[Ensemble]:
        """A fresh ensemble, or one of its members alone, on these contexts; `review` sees every pass's logits."""
        weights = {
            "core": replace(self.weights, lam=0.0, alpha=0.0),
            "expert": replace(self.weights, lam=1.0, alpha=0.0),
            "ensemble": self.weights,
        }[system]
        core = private = public = None
        if system != "expert":
            core = EngineMember(self.core, 0, core_ids, name="core")
        if system != "core":
            private = EngineMember(self.expert, 0, expert_ids, name="expert")
        if weights.alpha > 0 and len(expert_ids) != len(core_ids):
            public = EngineMember(self.expert, 1, core_ids, name="expert without context")
        with Ensemble(
            core=core, private=private, public=public, weights=weights, review=review, core_drafts=False
        ) as ensemble:  # fmt: skip
            yield ensemble


def open_pair(home: Path, *, expert: str | None = None, core: str = "packaged", passages: int = 4) -> Pair:
    """Core and expert as node and device would load them.

    Args:
        home: the folder of experts and models.
        expert: registered expert; None where there is only one.
        core: model folder or name for the core.
        passages: most passages shown to the expert.

    Raises:
        ClientError, DiffusionError, StartError: one sentence that says what is missing.
    """
    from ssd_client.answer import open_expert
    from ssd_client.retrieval import find_passages
    from ssd_client.store import Store
    from ssd_cloud.models import load_quickest, resolve

    opened = open_expert(Store(home), expert)
    card = opened.card
    engine = load_quickest(resolve(core, home), home, slots=1, batch_width=1, threads=None)
    about = (
        f"Core {engine.spec.model_id}; expert {card.name} on {opened.engine.spec.model_id}, {card.documents} "
        f"documents, lambda {card.lam:g}, alpha {card.alpha:g}."
    )
    return Pair(
        core=engine,
        expert=opened.engine,
        tokenizer=opened.tokenizer,
        weights=Weights(lam=card.lam, alpha=card.alpha),
        drafter=opened.transition,
        retrieve=lambda text: find_passages(opened.folder, home, text, passages),
        about=about,
    )
