"""Which threads spin: none by default, those of training, and always as the user has set it."""

import os
import subprocess
import sys

import pytest

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
SHOW = "import os; print([os.environ.get(n) for n in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')])"


def said(code: str, **set_before: str) -> str:
    env = {k: v for k, v in os.environ.items() if k not in NAMES} | set_before
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("package", ["ssd_client", "ssd_cloud"])
def test_quiet_unless_it_trains_or_the_user_says_so(package):
    assert said(f"import {package}; {SHOW}") == "['PASSIVE', '0']"
    busy = "from ssd_diffusion.openmp import wait_busily; wait_busily()"
    assert said(f"import {package}; {busy}; {SHOW}") == "[None, None]"
    assert said(f"import {package}; {busy}; {SHOW}", OMP_WAIT_POLICY="ACTIVE") == "['ACTIVE', None]"


@pytest.mark.parametrize(
    "command",
    [
        "from ssd_client.cli.personalize import _run as run; from unittest.mock import Mock; args = ({}, Mock())",
        "from ssd_cloud.cli.training import run; args = ('adapt', True)",
    ],
)
def test_commands_that_train_say_so_before_torch_is_there(command):
    """The environment as it is when torch is first asked for; what the command does then does not matter."""
    code = f"""
import sys, os
class Torch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print([os.environ.get(n) for n in {NAMES!r}])
            raise SystemExit
sys.meta_path.insert(0, Torch())
{command}
run(*args)
"""
    assert said(code) == "[None, None]"
