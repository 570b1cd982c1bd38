"""The node: gRPC service, step scheduler, torch engine, tokens, adaptation of pretrained decoders."""

__version__ = "0.1.0"
