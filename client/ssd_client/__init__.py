"""The device: command line, ingestion, personalization, ONNX Runtime engine, answering, ledger."""

__version__ = "0.1.0"
