"""Which backend runs: argument, environment, default; and that numba is not imported before it is needed."""

import os
import subprocess
import sys

import pytest
from ssd_kernels.backend import resolve
from ssd_kernels.errors import InvalidInput


def test_choice(monkeypatch):
    monkeypatch.delenv("SSD_KERNELS_BACKEND", raising=False)
    assert resolve() == "numba"
    monkeypatch.setenv("SSD_KERNELS_BACKEND", "numpy")
    assert resolve() == "numpy"
    assert resolve("numba") == "numba"


def test_unknown_name(monkeypatch):
    monkeypatch.setenv("SSD_KERNELS_BACKEND", "cuda")
    with pytest.raises(InvalidInput, match="cuda"):
        resolve()


def test_import_and_numpy_backend_need_no_numba():
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import numpy as np, ssd_kernels as k\n"
        "x = k.normals(1, np.arange(2), step=0, block=0, vocab=9)\n"
        "k.fuse(x, x, x, lam=.5, alpha=.5); k.multi_hot(x, top_p=.9)\n"
        "assert not [m for m in sys.modules if m.startswith('ssd_kernels._')]\n"
    )
    env = {**os.environ, "SSD_KERNELS_BACKEND": "numpy"}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, timeout=60)
