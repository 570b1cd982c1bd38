"""A folder of documents becomes clean text: walk, extract, ingest, remove near-duplicates, split into passages."""

from ssd_client.documents.dedupe import Deduplicated, Duplicate, dedupe
from ssd_client.documents.extract import Limits
from ssd_client.documents.ingest import Document, Ingested, Progress, ingest
from ssd_client.documents.passages import Passage, split

__all__ = [
    "Deduplicated",
    "Document",
    "Duplicate",
    "Ingested",
    "Limits",
    "Passage",
    "Progress",
    "dedupe",
    "ingest",
    "split",
]
