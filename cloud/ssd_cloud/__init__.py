"""The node: gRPC service, step scheduler, torch engine, tokens, adaptation of pretrained decoders."""

import os

# Before numpy and torch are loaded: threads that wait without spinning, and one thread for numpy's small products.
# Where node and device share two cores, spinning ones made a step several times slower.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

__version__ = "0.1.0"
