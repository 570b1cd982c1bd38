"""The node: gRPC service, step scheduler, torch engine, tokens, adaptation of pretrained decoders."""

import os

from ssd_diffusion.openmp import wait_quietly

# Before numpy and torch are loaded: threads that wait without spinning, and one thread for numpy's small products.
# Where node and device share two cores, spinning ones made a step several times slower.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
wait_quietly()

__version__ = "0.1.0"
