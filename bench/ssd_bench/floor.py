"""Held-out cross-entropy per byte: the n-gram floor, the autoregressive base, and the adapted diffusion model's S1.

All score the same spans of the same held-out documents after the same context. The n-gram model is trained on the very
text the adapter was trained on. S1 is the chain rule at the first open position, all others pure noise; it is a
normalised distribution over sequences, so the three may be compared (a denoising loss may not).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ssd_diffusion.engine import Engine
from ssd_diffusion.ensemble import Ensemble, Weights
from ssd_diffusion.members import EngineMember
from ssd_diffusion.scores import s1, s1_autoregressive
from ssd_diffusion.tokenizer import Tokenizer
from ssd_kernels.types import F64, I32

from ssd_bench.kneser_ney import KneserNey

CONTEXT, SPAN = 64, 64
NGRAM, BASE, ADAPTED, TWIN = "Kneser-Ney 5-gram", "autoregressive base", "adapted, S1", "adapted, next token"
MODELS = (NGRAM, BASE, ADAPTED, TWIN)


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """Held-out tokens to score.

    Attributes:
        source: which corpus.
        context: ids before them.
        tokens: ids to score.
        size_bytes: UTF-8 bytes of the scored text.
    """

    source: str
    context: I32
    tokens: I32
    size_bytes: int


@dataclass(frozen=True, slots=True)
class SpanScore:
    """Nats of one span under each model, and its bytes."""

    source: str
    size_bytes: int
    nats: dict[str, float]


def spans(tokenizer: Tokenizer, source: str, texts: Sequence[str], *, count: int, seed: int) -> list[Span]:
    """At most one span a document, somewhere in it, after at least CONTEXT tokens (or what a short document has)."""
    rng = np.random.default_rng(seed)
    found: list[Span] = []
    for i in rng.permutation(len(texts)):
        ids = tokenizer.encode(texts[i])
        if len(ids) < SPAN // 2 + 16:
            continue
        start = int(rng.integers(16, max(17, len(ids) - SPAN)))
        context, tokens = ids[max(0, start - CONTEXT) : start], ids[start : start + SPAN]
        before = len(tokenizer.decode(context, special=True).encode())
        size = len(tokenizer.decode(np.concatenate([context, tokens]), special=True).encode()) - before
        if size > 0:
            found.append(Span(source, context, tokens, size))
        if len(found) == count:
            break
    return found


def measure(
    chosen: Sequence[Span],
    *,
    ngram: KneserNey,
    base: Callable[[I32, I32], float],
    adapted: Engine,
    advance: Callable[[], None],
) -> list[SpanScore]:
    """Nats of every span under all models.

    Args:
        chosen: the spans.
        ngram: the floor.
        base: minus the log-probability of tokens after a context, by the autoregressive base.
        adapted: the diffusion model.
        advance: called after every span.
    """
    out = []
    for span in chosen:
        opener = scorer(adapted, span.context)
        nats = {
            NGRAM: -float(ngram.logp(span.tokens.astype(np.int64), context=span.context.astype(np.int64)).sum()),
            BASE: base(span.context, span.tokens),
            ADAPTED: -float(s1(opener, span.tokens).sum()),
            TWIN: -float(s1_autoregressive(opener, span.tokens).sum()),
        }
        out.append(SpanScore(span.source, span.size_bytes, nats))
        advance()
    return out


def scorer(engine: Engine, context: I32) -> Callable[[], AbstractContextManager[Ensemble]]:
    """Opens the engine alone on a context."""

    @contextmanager
    def opened() -> Any:
        member = EngineMember(engine, 0, context, name="core")
        with Ensemble(core=member, private=None, public=None, weights=Weights(lam=0.0)) as ensemble:
            yield ensemble

    return opened


def base_scorer(home: Path) -> Callable[[I32, I32], float]:
    """`causal_scorer` of the packaged decoder as it was before any adaptation.

    Args:
        home: folder of models; the decoder is kept in its bench/.

    Raises:
        InvalidModel: the packaged decoder cannot be read.
    """
    from ssd_diffusion.packaged import ensure

    return causal_scorer(ensure(home / "bench", weights=home / "bench" / "no-adapter"))


def causal_scorer(folder: Path) -> Callable[[I32, I32], float]:
    """Minus the log-probability of tokens after a context, by a plain causal pass of the backbone in a model folder.

    Raises:
        InvalidModel: the folder is not what it should be.
    """
    import torch
    import transformers
    from ssd_diffusion.models import folder as folders

    transformers.utils.logging.disable_progress_bar()
    model, spec = folders.load(folder)
    causal: Any = model.causal

    def nats(context: I32, tokens: I32) -> float:
        ids = torch.from_numpy(np.concatenate([context, tokens]).astype(np.int64))[None]
        with torch.inference_mode():
            logits = causal(input_ids=ids).logits[0, len(context) - 1 : -1, : spec.vocab].double()
        logp = torch.log_softmax(logits, dim=-1)
        return -float(logp[torch.arange(len(tokens)), torch.from_numpy(tokens.astype(np.int64))].sum())

    return nats


def per_byte(scores: Sequence[SpanScore], model: str) -> tuple[F64, F64]:
    """Nats and bytes of every span, for a weighted bootstrap."""
    return np.array([s.nats[model] for s in scores]), np.array([float(s.size_bytes) for s in scores])
