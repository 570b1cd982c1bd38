"""The index of an expert's documents: which passages speak to a question."""

from ssd_client.index.encoder import Encoder, encoder_dir, find_encoder
from ssd_client.index.search import Found, Index, Searched, Updated

__all__ = ["Encoder", "Found", "Index", "Searched", "Updated", "encoder_dir", "find_encoder"]
