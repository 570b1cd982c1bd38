"""A model in another vocabulary: its rows of embedding and head exchanged, and the new ones opened for training.

Everything else stays as it is: layers, diffusion maps, and whether the head is tied to the embedding. Knows nothing
about tokenizers; which old rows a new one starts from is the caller's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ssd_diffusion.models.ssd2 import Ssd2Model

_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def exchange_rows(model: Ssd2Model, origins: Sequence[Sequence[int]], special: Mapping[str, int]) -> None:
    """Put a model into another vocabulary, in place; no padded rows are kept.

    Args:
        model: in the old vocabulary.
        origins: for each new id the old ids whose rows it starts as the mean of; the mean of all where empty.
        special: ids of "bos", "eos" and "pad" in the new vocabulary, for the configuration.
    """
    causal: Any = model.causal
    tables = (causal.get_input_embeddings().weight, causal.get_output_embeddings().weight)
    tied = tables[0] is tables[1]
    made = [_means(table.detach()[: model.vocab], origins) for table in (tables[:1] if tied else tables)]
    causal.resize_token_embeddings(len(origins), mean_resizing=False)
    with torch.no_grad():
        causal.get_input_embeddings().weight.copy_(made[0])
        causal.get_output_embeddings().weight.copy_(made[-1])
    for config in (causal.config, causal.generation_config):
        for name in _TOKEN_IDS:
            setattr(config, name, special.get(name.removesuffix("_token_id")))
    model.vocab = len(origins)
    model.mean_embedding = model.table.detach().mean(dim=0)


def open_rows(model: Ssd2Model, ids: Sequence[int]) -> None:
    """Set rows of embedding and head to be trained; all other rows get gradients of zero, so AdamW leaves them be.

    Args:
        model: one whose adapter, if any, is attached: attaching sets everything else not to be trained.
        ids: of the rows.
    """
    causal: Any = model.causal
    parts = (causal.get_input_embeddings(), causal.get_output_embeddings())
    for weight in {id(part.weight): part.weight for part in parts}.values():
        open_row = torch.zeros(len(weight), 1, dtype=weight.dtype, device=weight.device)
        open_row[list(ids)] = 1.0
        weight.requires_grad_(True)
        weight.register_hook(lambda grad, open_row=open_row: grad * open_row)


def _means(table: Tensor, origins: Sequence[Sequence[int]]) -> Tensor:
    """Means of rows in float32, in the table's dtype. [V of the new vocabulary, H]"""
    flat = torch.tensor([i for ids in origins for i in ids], dtype=torch.long, device=table.device)
    sizes = torch.tensor([len(ids) for ids in origins], dtype=torch.long, device=table.device)
    starts = torch.cumsum(sizes, dim=0) - sizes
    values = table.float()
    means = torch.nn.functional.embedding_bag(flat, values, starts, mode="mean")
    means[sizes == 0] = values.mean(dim=0)
    return means.to(table.dtype)
