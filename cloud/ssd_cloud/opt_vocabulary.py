"""OPT's tokenizer from its two published files, vocab.json and merges.txt, which are not part of this project.

What the folders of OPT's models say beside these files is the same for all of them and is written here: </s> opens a
text, ends it and stands for what is unknown, <pad> pads. Knows nothing about models.
"""

from __future__ import annotations

import json
from pathlib import Path

from ssd_diffusion.errors import InvalidModel
from ssd_diffusion.spec_file import one_line

FILES = ("vocab.json", "merges.txt")
_HEAD = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}


def write_opt_tokenizer(source: Path, target: Path) -> Path:
    """Write the tokenizer's files of an OPT model folder, as transformers makes them.

    Args:
        source: a folder with vocab.json and merges.txt.
        target: made when missing.

    Returns:
        The target.

    Raises:
        InvalidModel: a file is missing, or they are not OPT's vocabulary and merges.
    """
    import transformers

    _check(source)
    end, pad = (transformers.AddedToken(token, normalized=True) for token in ("</s>", "<pad>"))
    try:
        tokenizer = transformers.GPT2Tokenizer(
            *(str(source / name) for name in FILES), bos_token=end, eos_token=end, unk_token=end, pad_token=pad,
            add_bos_token=True,
        )  # fmt: skip
    except Exception as error:  # the tokenizers package raises bare Exception for merges that are none
        raise InvalidModel(
            f"{source / FILES[1]} does not fit the vocabulary beside it ({one_line(error)}); fetch both again"
        ) from error
    tokenizer.save_pretrained(target)
    return target


def _check(source: Path) -> None:
    for name in FILES:
        if not (source / name).is_file():
            raise InvalidModel(f"{source} has no {name}; name the folder with OPT's vocab.json and merges.txt")
    try:
        vocab = json.loads((source / FILES[0]).read_text(encoding="utf-8"))
        (source / FILES[1]).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InvalidModel(
            f"OPT's vocabulary in {source} cannot be read ({one_line(error)}); fetch it again"
        ) from error
    known = isinstance(vocab, dict) and all(vocab.get(token) == i for token, i in _HEAD.items())
    if not known or sorted(map(repr, vocab.values())) != sorted(map(repr, range(len(vocab)))):
        raise InvalidModel(
            f"{source / FILES[0]} is not OPT's vocabulary, which numbers its tokens from 0 on and begins with <s>, "
            "<pad>, </s>, <unk>; fetch it again, or name a model folder as --tokenizer"
        )
