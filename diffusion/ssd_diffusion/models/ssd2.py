"""The SSD-2 family: a pretrained causal decoder that denoises a window of positions after its clean context.

One fused pass reads [pending clean tokens | anchor | window]. The pending tokens are causal and go into the cache, the
anchor (last clean token, u = 0) predicts the first open position, and every window position but the last predicts the
one after it (output shift). Positions at u = 1 say nothing and are hidden from all others, so a model that has learned
nothing answers at the anchor exactly as its base does (diffusion.md 2b). Reconstructed from the abstract of SSD-2 (Han
et al., NAACL 2024); the equations of the simplex are SSD-LM's.

Knows nothing about slots, sampling, files or training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ssd_diffusion.models.transition import Transition


class PassCache:
    """Keys and values for one pass: padded past ones joined with the new ones, which are kept apart.

    Has the two methods of a transformers cache that the backbones call when the mask is given.
    """

    def __init__(self, past: Tensor | None) -> None:
        """Args: past [layers, 2, R, kv heads, L, head dim], or None for an empty past."""
        self.past = past
        self.new: list[tuple[Tensor, Tensor]] = []

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keep the new keys and values of a layer and return them behind the past ones."""
        self.new.append((keys, values))
        if self.past is None:
            return keys, values
        past = self.past[layer_idx]
        return torch.cat([past[0], keys], dim=2), torch.cat([past[1], values], dim=2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Length of the past, padding included."""
        del layer_idx
        return 0 if self.past is None else int(self.past.shape[-2])


class Ssd2Model(nn.Module):
    """A causal decoder with the two maps of the diffusion input.

    Attributes:
        causal: the transformers model with its head (OPT, Llama and their like).
        w_diff: H x H, applied to embeddings averaged under a distribution; the identity before training.
        w_time: noise level to H; zero before training.
        transition: what the tokens before a drafted position add to its hidden state; None where none was trained.
        vocab: true V; the rows of the embedding and head past it are padding.
    """

    mean_embedding: Tensor
    transition: Transition | None

    def __init__(self, causal: nn.Module, vocab: int) -> None:
        super().__init__()
        self.causal = causal
        self.vocab = vocab
        table = self.table
        hidden = table.shape[1]
        self.w_diff = nn.Linear(hidden, hidden, bias=False, dtype=table.dtype, device=table.device)
        self.w_time = nn.Linear(1, hidden, dtype=table.dtype, device=table.device)
        with torch.no_grad():
            nn.init.eye_(self.w_diff.weight)
            nn.init.zeros_(self.w_time.weight)
            nn.init.zeros_(self.w_time.bias)
        self.register_buffer("mean_embedding", table.detach().mean(dim=0), persistent=False)
        self.transition = None

    def add_transition(self, width: int | None = None) -> Transition:
        """A fresh transition, which adds nothing before it is trained. Args: width of its hidden layer, 2 H if None."""
        made = Transition(self.hidden_size, width or 2 * self.hidden_size)
        self.transition = made.to(self.w_diff.weight.device, self.w_diff.weight.dtype)
        return self.transition

    def make_state_legible(self, scale: float = 12.0) -> None:
        """Start w_diff from scale (I - m m^T), m the direction of the mean embedding, instead of the identity.

        softmax(x_t) E is a few hundredths of a token's embedding beside a mean that is most of one, and a layer norm
        drowns the former. Without the mean and scaled up, low noise levels read as tokens before any training: the
        packaged base's cross-entropy at u = .2 falls from 9.6 to 5.8 nats (scale 16). The anchor does not change.
        """
        with torch.no_grad():
            mean = self.mean_embedding / self.mean_embedding.norm().clamp(min=1e-12)
            eye = torch.eye(len(mean), dtype=mean.dtype, device=mean.device)
            self.w_diff.weight.copy_(scale * (eye - torch.outer(mean, mean)))

    @property
    def maps_untouched(self) -> bool:
        """True where w_diff and w_time are those of a new model: the identity and zero."""
        eye = torch.eye(self.hidden_size, dtype=self.w_diff.weight.dtype, device=self.w_diff.weight.device)
        return torch.equal(self.w_diff.weight, eye) and not any(bool(p.any()) for p in self.w_time.parameters())

    @property
    def table(self) -> Tensor:
        """Input embeddings E of the true vocabulary. [V, H]"""
        weight: Tensor = self.causal.get_input_embeddings().weight  # type: ignore[operator]
        return weight[: self.vocab]

    @property
    def hidden_size(self) -> int:
        """H, width of the input embedding."""
        return int(self.w_diff.weight.shape[0])

    def embed(self, tokens: Tensor) -> Tensor:
        """Clean tokens of the context, as the base embeds them. [..., n] -> [..., n, H]"""
        return nn.functional.embedding(tokens, self.table)

    def embed_clean(self, tokens: Tensor) -> Tensor:
        """Accepted window positions and the anchor: E[token] + W_time(0). [..., n] -> [..., n, H]"""
        return self.embed(tokens) + self.w_time.bias

    def embed_window(self, tokens: Tensor, u: Tensor, noised: Tensor, conditioning: Tensor) -> Tensor:
        """Inputs of the window positions by their own noise level (diffusion.md 2, SSD-LM eq. for W_diff and W_time).

        u = 0: E[token] + W_time(0). 0 < u < 1: M((softmax(x_t) E + c) / 2) + W_time(u), c the self-conditioning.
        u = 1: M(mean of E) + W_time(1), which is the same for every draw of the noise.

        Args:
            tokens: ids, read where u = 0. [..., B]
            u: noise levels. [..., B]
            noised: softmax(x_t) E, read where 0 < u < 1. [..., B, H]
            conditioning: softmax(previous logits) E, the mean of E where there are none. [..., B, H]
        """
        level = u.unsqueeze(-1).to(self.w_time.weight.dtype)
        mixed = (noised + conditioning) / 2
        mixed = torch.where(level >= 1.0, self.mean_embedding.to(mixed.dtype), mixed).to(level.dtype)
        open_rows = self.w_diff(mixed) + self.w_time(level)
        return torch.where(level <= 0.0, self.embed_clean(tokens), open_rows)

    def forward_pass(
        self, inputs: Tensor, position_ids: Tensor, allowed: Tensor, past: Tensor | None = None, *, keep: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Run the backbone under an explicit mask.

        Args:
            inputs: input embeddings. [R, Q, H]
            position_ids: [R, Q]
            allowed: True where a query may read a key; keys are the past ones and then the inputs. [R, Q, L + Q]
            past: keys and values. [layers, 2, R, kv heads, L, head dim]
            keep: return the keys and values of the inputs too.

        Returns:
            Last hidden states [R, Q, width of the head] and the new keys and values [layers, 2, R, kv heads, Q, head
            dim], or None.
        """
        bias = torch.zeros(allowed.shape, dtype=inputs.dtype, device=inputs.device)
        bias = bias.masked_fill(~allowed, torch.finfo(inputs.dtype).min).unsqueeze(1)
        cache = PassCache(past) if keep or past is not None else None
        out = self.causal.get_decoder()(  # type: ignore[operator]
            inputs_embeds=inputs, attention_mask=bias, position_ids=position_ids, past_key_values=cache, use_cache=False
        )
        hidden: Tensor = out.last_hidden_state
        if not keep or cache is None:
            return hidden, None
        return hidden, torch.stack([torch.stack(pair) for pair in cache.new])

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits of the true vocabulary. [..., width] -> [..., V]"""
        head: Any = self.causal.get_output_embeddings()  # type: ignore[operator]
        bias = None if head.bias is None else head.bias[: self.vocab]
        # Rows of a slice with gaps make torch copy a frozen head once a row: 70 times the work at V = 49,152.
        return nn.functional.linear(hidden.contiguous(), head.weight[: self.vocab], bias)

    def read(self, logits: Tensor) -> Tensor:
        """Self-conditioning of the next step: softmax(logits) E, before M. [..., V] -> [..., H]"""
        table = self.table
        return torch.softmax(logits.float(), dim=-1).to(table.dtype) @ table


@dataclass(frozen=True, slots=True)
class PassLayout:
    """Positions and mask of one fused pass over [padded past | padded pending | anchor | window].

    Attributes:
        position_ids: [R, P + 1 + B]
        allowed: [R, P + 1 + B, L + P + 1 + B]
    """

    position_ids: Tensor
    allowed: Tensor


def pass_layout(cached: Tensor, pending: Tensor, u: Tensor, *, past_length: int, pending_length: int) -> PassLayout:
    """Who may read whom in a fused pass (diffusion.md 2b).

    Pending tokens read causally. Anchor and window read every clean token, the anchor, the window positions with u < 1
    and themselves. Padding reads only itself and is read by nobody.

    Args:
        cached: true length of the past. [R]
        pending: true number of pending tokens. [R]
        u: noise levels of the window, B may be 0. [R, B]
        past_length: padded length L of the past.
        pending_length: padded number P of pending tokens.
    """
    rows, block = u.shape
    device = u.device
    past_ok = torch.arange(past_length, device=device) < cached[:, None]
    pend = torch.arange(pending_length, device=device)
    pend_ok = pend < pending[:, None]
    tail_ok = torch.cat([torch.ones(rows, 1, dtype=torch.bool, device=device), u < 1.0], dim=1)
    keys_ok = torch.cat([past_ok, pend_ok, tail_ok], dim=1)
    queries = pending_length + 1 + block
    allowed = keys_ok[:, None, :].repeat(1, queries, 1)
    causal = pend[None, :] <= pend[:, None]
    allowed[:, :pending_length, past_length : past_length + pending_length] &= causal
    allowed[:, :pending_length, past_length + pending_length :] = False
    own = torch.arange(queries, device=device)
    allowed[:, own, past_length + own] = True
    dead = ~pend_ok
    allowed[:, :pending_length, :past_length] &= ~dead[:, :, None]
    allowed[:, :pending_length, past_length:] &= ~dead[:, :, None] | torch.eye(
        pending_length, queries, dtype=torch.bool, device=device
    )
    first = torch.minimum(cached[:, None] + pend, (cached + pending)[:, None])
    after = (cached + pending)[:, None] + torch.arange(1 + block, device=device)
    return PassLayout(position_ids=torch.cat([first, after], dim=1), allowed=allowed)


def lookahead_layout(
    cached: Tensor, pending: Tensor, path: Tensor, ahead: int, *, past_length: int, pending_length: int
) -> PassLayout:
    """`ssd_diffusion.layout.lookahead_layout` for padded rows.

    Args:
        cached: true length of the past. [R]
        pending: true number of pending tokens. [R]
        path: `layout.tree_path` of every row's drafts. [R, D + 1, D + 1]
        ahead: open positions after the clean text and after each draft.
        past_length: padded length L of the past.
        pending_length: padded number P of pending tokens.
    """
    device, rows = cached.device, len(cached)
    plain = pass_layout(
        cached, pending, torch.zeros(rows, 0, device=device), past_length=past_length, pending_length=pending_length
    )
    drafts = path.shape[1] - 1
    branch = torch.arange(drafts + 1, device=device)
    owner = torch.cat([branch, branch.repeat_interleave(ahead)])
    extra, head = drafts + len(owner), past_length + pending_length
    allowed = torch.zeros(rows, pending_length + extra, head + extra, dtype=torch.bool, device=device)
    allowed[:, :pending_length, :head] = plain.allowed[:, :pending_length, :head]
    allowed[:, pending_length:, :head] = plain.allowed[:, pending_length:, :head]
    own = torch.zeros(rows, extra, extra, dtype=torch.bool, device=device)
    own[:, :drafts, :drafts] = path[:, :drafts, :drafts]
    own[:, drafts:, :drafts] = path[:, owner, :drafts] & (owner[:, None] != branch[:drafts])
    own[:, drafts:, drafts : 2 * drafts + 1] = owner[:, None] == branch
    own |= torch.eye(extra, dtype=torch.bool, device=device)
    allowed[:, pending_length:, head:] = own
    depth = path.sum(dim=2) - 1
    after = (depth[:, :, None] + 1 + torch.arange(ahead, device=device)).flatten(1)
    behind = (cached + pending)[:, None] + torch.cat([depth[:, :drafts], depth, after], dim=1)
    return PassLayout(torch.cat([plain.position_ids[:, :pending_length], behind], dim=1), allowed)
