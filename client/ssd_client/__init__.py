"""The device: command line, ingestion, personalization, ONNX Runtime engine, answering, ledger."""

import os

from ssd_diffusion.openmp import wait_quietly

# One thread for numpy's own matrix products, set before numpy is loaded. They are small here, and OpenBLAS's threads
# spin: on a busy two-core machine a product of 20 ms took 700 ms of processor time with two of them. onnxruntime and
# torch have thread pools of their own; torch's wait without spinning, for the same reason.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
wait_quietly()

__version__ = "0.1.0"
