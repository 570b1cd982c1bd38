"""Conversations as token ids: the prompt and the response of every turn. Knows nothing about rows or files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ssd_diffusion.tokenizer import Tokenizer
from ssd_diffusion.training.data import Pair


def conversation(messages: Sequence[dict[str, str]], tokenizer: Tokenizer) -> Pair:
    """Prompt and response of every turn of the assistant; of the last one alone where the template rewrites turns.

    Args:
        messages: that end with the assistant's.
        tokenizer: with the template.
    """
    turns: list[Pair] = []
    read = np.zeros(0, np.int32)
    for at, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        whole = tokenizer.chat(messages[:at])
        response = tokenizer.encode(message["content"])
        if len(whole) <= len(read) or not np.array_equal(whole[: len(read)], read):
            return Pair(tokenizer.chat(messages[:-1]), tokenizer.encode(messages[-1]["content"]))
        turns.append(Pair(whole[len(read) :], response))
        read = np.concatenate([whole, response, [end_of_answer(tokenizer)]]).astype(np.int32)
    return Pair(turns[0].prompt, turns[0].response, tuple(turns[1:]))


def end_of_answer(tokenizer: Tokenizer) -> int:
    """The token that ends a turn: the last of those that end an answer, where a document's end is one too."""
    return tokenizer.eos_ids[-1] if tokenizer.eos_ids else 0
