"""The SSD-LM family: a bidirectional masked-LM backbone (RoBERTa) over [context ; noisy block].

    inputs_embeds = concat(E[context], W_diff softmax(x_t) + W_time(t / T))
    logits        = masked-LM head (tied to E) at the block's positions

(Han, Kumar, Tsvetkov, "SSD-LM", ACL 2023, section 3; built from the equations.) There is no attention mask and no
special token round the context; the backbone adds its own positions and LayerNorm. W_diff starts as the embedding and
is trained apart. Knows nothing about windows, slots, sampling or text; `ssdlm_engine` runs the model for a decoder, and
`ssdlm_checkpoint` reads and writes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ssd_diffusion.errors import ContextOverflow, InvalidModel
from ssd_diffusion.schedule import SCHEDULE_S, SIMPLEX_K, alpha_bar

TRAIN_STEPS = 5000
"""T of training: noise levels are t / T for whole t from 1 to T."""


class SsdlmModel(nn.Module):
    """The network of SSD-LM.

    Args:
        backbone: a transformers RobertaForMaskedLM with its head tied to its embedding.

    Attributes:
        w_diff: simplex embedding, one row a token: W_diff transposed, [V, H]; starts as the backbone's embedding.
        w_time: Linear(1, H) on the noise level, added on the block alone.

    Raises:
        InvalidModel: the head is not tied to the embedding.
    """

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        embedding = backbone.get_input_embeddings().weight
        if backbone.get_output_embeddings().weight is not embedding:
            raise InvalidModel("the masked-LM head is not tied to the embedding; set tie_word_embeddings in its config")
        self.backbone = backbone
        self.w_diff = nn.Parameter(embedding.detach().clone())
        self.w_time = nn.Linear(1, embedding.shape[1]).to(embedding)

    @property
    def vocab(self) -> int:
        """Rows of the embedding, V."""
        return int(self.w_diff.shape[0])

    @property
    def hidden(self) -> int:
        """Width H."""
        return int(self.w_diff.shape[1])

    @property
    def max_positions(self) -> int:
        """Most positions that context and block may take together (512 for RoBERTa).

        RoBERTa counts positions from the padding id + 1 on, so that many rows of its table are never used.
        """
        config = self.backbone.config
        return int(config.max_position_embeddings) - int(config.pad_token_id) - 1

    def embed_state(self, x_t: Tensor) -> Tensor:
        """W_diff softmax(x_t): states [..., V] as vectors [..., H]."""
        return torch.softmax(x_t, dim=-1) @ self.w_diff

    def forward(self, context: Tensor, block: Tensor, u: Tensor) -> Tensor:
        """Logits at the block's positions.

        Args:
            context: clean token ids [n, C]; C may be 0.
            block: W_diff softmax(x_t), [n, B, H], see `embed_state`.
            u: noise level t / T, one for each row [n] or each position [n, B].

        Returns:
            [n, B, V].

        Raises:
            ContextOverflow: context and block exceed the backbone's positions.
        """
        length = context.shape[1] + block.shape[1]
        if length > self.max_positions:
            raise ContextOverflow(
                f"context and block have {length} tokens and this model takes {self.max_positions}; shorten the prompt"
            )
        levels = u if u.dim() == 2 else u[:, None].expand(-1, block.shape[1])
        noisy = block + self.w_time(levels[..., None].to(block.dtype))
        clean = self.backbone.get_input_embeddings()(context)
        hidden = self.backbone.roberta(inputs_embeds=torch.cat([clean, noisy], dim=1)).last_hidden_state
        logits: Tensor = self.backbone.lm_head(hidden[:, context.shape[1] :])
        return logits


@dataclass(frozen=True, slots=True)
class TrainingDraw:
    """What one training batch draws at random.

    Attributes:
        context_length: clean tokens before the block, the same for all rows (there is no attention mask).
        t: step of each row, 1 .. T. [n]
        noise: standard normals. [n, B, V]
    """

    context_length: int
    t: Tensor
    noise: Tensor


def draw_training(
    rows: int, *, length: int, block: int, vocab: int, generator: torch.Generator, steps: int = TRAIN_STEPS
) -> TrainingDraw:
    """Context length uniform on 1 .. length - block, t uniform on 1 .. T, noise standard normal.

    Raises:
        InvalidModel: no room for a context before the block.
    """
    if length <= block:
        raise InvalidModel(f"rows of {length} tokens leave no context before a block of {block}; use longer rows")
    context_length = int(torch.randint(1, length - block + 1, (1,), generator=generator))
    t = torch.randint(1, steps + 1, (rows,), generator=generator)
    return TrainingDraw(context_length, t, torch.randn((rows, block, vocab), generator=generator))


def noised_simplex(tokens: Tensor, ab: Tensor, noise: Tensor, *, k: float = SIMPLEX_K) -> Tensor:
    """x_t = sqrt(ab) w~_0 + sqrt(1 - ab) K z, with w~_0 = +K at the token and -K elsewhere.

    Args:
        tokens: clean ids [n, B].
        ab: share of the signal of each row [n].
        noise: standard normals z [n, B, V].
        k: simplex scale K.
    """
    simplex = torch.full_like(noise, -k).scatter_(-1, tokens[..., None], k)
    share = ab[:, None, None].to(noise)
    return share.sqrt() * simplex + (1 - share).sqrt() * k * noise


def training_loss(
    model: SsdlmModel,
    tokens: Tensor,
    draw: TrainingDraw,
    *,
    k: float = SIMPLEX_K,
    s: float = SCHEDULE_S,
    steps: int = TRAIN_STEPS,
) -> Tensor:
    """Mean cross-entropy of the clean block tokens, no time weighting (SSD-LM, section 3). Nats a token; not an ELBO.

    Args:
        model: the network.
        tokens: ids [n, L]; the block follows `draw.context_length` tokens, what comes after it is not read.
        draw: context length, steps and noise of this batch.
        k: simplex scale K.
        s: offset of the cosine schedule.
        steps: T.
    """
    c, b = draw.context_length, draw.noise.shape[1]
    context, clean = tokens[:, :c], tokens[:, c : c + b]
    u = draw.t.double() / steps
    ab = torch.from_numpy(alpha_bar(u.cpu().numpy(), s)).to(draw.noise.device)
    x_t = noised_simplex(clean, ab, draw.noise, k=k)
    dtype = model.w_diff.dtype
    logits = model(context, model.embed_state(x_t.to(dtype)), u.to(device=model.w_diff.device, dtype=dtype))
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), clean.flatten())


def parameter_groups(model: SsdlmModel, weight_decay: float = 0.01) -> list[dict[str, Any]]:
    """Groups for AdamW: no decay on biases, norms and W_time, as SSD-LM trains."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        exempt = parameter.dim() < 2 or name.startswith("w_time.") or "LayerNorm" in name or "layer_norm" in name
        (plain if exempt else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


@dataclass(frozen=True, slots=True)
class Guidance:
    """Control by a frozen classifier that shares the vocabulary (SSD-LM, section 3.3).

    Attributes:
        classify: class logits [n, classes] from input embeddings [n, length, D].
        embedding: the classifier's own embedding, one row a token [V, D].
        label: the class wanted.
        weight: lambda.
        with_context: the classifier reads context and block; False gives it the block alone.
    """

    classify: Callable[[Tensor], Tensor]
    embedding: Tensor
    label: int
    weight: float
    with_context: bool = True


def guide(logits: Tensor, guidance: Guidance, context: Tensor | None = None) -> Tensor:
    """logits + lambda grad_logits log f(label | softmax(logits) E_clf): one gradient step before the projection.

    The log-probabilities of the rows are summed, never averaged, so lambda does not depend on the batch size.

    Args:
        logits: the denoiser's logits [n, B, V].
        guidance: classifier, label and weight.
        context: clean ids [n, C] before the block; read where `guidance.with_context`.

    Raises:
        InvalidModel: the classifier has another vocabulary.
    """
    if guidance.embedding.shape[0] != logits.shape[-1]:
        raise InvalidModel(
            f"the classifier knows {guidance.embedding.shape[0]} tokens and the model {logits.shape[-1]}; "
            "use a classifier with the model's tokenizer"
        )
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_(True)
        embedded = torch.softmax(leaf, dim=-1) @ guidance.embedding
        if guidance.with_context and context is not None:
            embedded = torch.cat([guidance.embedding[context], embedded], dim=1)
        log_f = torch.log_softmax(guidance.classify(embedded), dim=-1)[:, guidance.label].sum()
        (gradient,) = torch.autograd.grad(log_f, leaf)
    return logits + guidance.weight * gradient
