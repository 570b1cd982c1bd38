"""Triton kernels on a card where there is one, else under Triton's interpreter."""

import pytest
import torch


@pytest.fixture
def put():
    """Arrays as tensors where the kernels run."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return lambda array: torch.from_numpy(array).to(device)
