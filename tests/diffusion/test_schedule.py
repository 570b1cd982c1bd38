import itertools
import stat
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ssd_diffusion import home, keys
from ssd_diffusion.errors import InvalidStep
from ssd_diffusion.schedule import alpha_bar, information_grid, thin_grid, uniform_grid


@given(t=st.integers(0, 5000))
def test_alpha_bar_is_the_papers(t: int) -> None:
    r = lambda x: np.cos(((x / 5000 + 1e-4) / (1 + 1e-4)) * np.pi / 2) ** 2  # noqa: E731
    assert float(alpha_bar(t / 5000)) == pytest.approx(r(t) / r(0), abs=1e-12)


def test_alpha_bar_ends() -> None:
    assert alpha_bar(np.array([0.0, 1.0])).tolist() == [1.0, 0.0]


def test_uniform_grid() -> None:
    assert uniform_grid(4) == (1.0, 0.75, 0.5, 0.25)


def test_information_grid_has_equal_drops() -> None:
    levels = np.linspace(0, 1, 101)
    entropy = 6 / (1 + np.exp(-20 * (levels - 0.3)))
    grid = information_grid(levels, entropy, 7)
    at = np.interp(grid, levels, entropy)
    assert grid[0] == 1.0
    assert np.diff(at) == pytest.approx(np.full(6, np.diff(at)[0]), abs=0.02)
    assert all(a > b for a, b in itertools.pairwise(grid))


@pytest.mark.parametrize("call", [
    lambda: uniform_grid(0), lambda: thin_grid((1.0,), 0), lambda: information_grid((1.0, 0.5), (3.0, 1.0), 0),
    lambda: information_grid((0.9, 0.5), (3.0, 1.0), 3), lambda: information_grid((1.0,), (3.0,), 3),
])  # fmt: skip
def test_bad_grids_are_refused(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InvalidStep):
        call()


def test_thin_grid_keeps_the_first_and_the_last() -> None:
    grid = (1.0, 0.6, 0.5, 0.4, 0.3, 0.2)
    assert thin_grid(grid, 3) == (1.0, 0.5, 0.2)
    assert thin_grid(grid, 9) == grid
    assert thin_grid(grid, 1) == (1.0,)


def test_keys_are_apart_and_stable() -> None:
    secret = bytes(32)
    values = {keys.noise_key(5), keys.core_draw_key(5), keys.draw_key(secret, 5), keys.draw_key(b"x" * 32, 5)}
    assert len(values) == 4
    assert all(0 <= v < 2**64 for v in values)
    assert keys.draw_key(secret, 5) == keys.draw_key(secret, 5) != keys.draw_key(secret, 6)
    assert 0 <= keys.new_seed() < 2**63


def test_device_secret_is_made_once_and_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSD_HOME", str(tmp_path / "ssd"))
    root = home.home()
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(home.device_secret(root))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(set(found)) == 1
    assert len(found) == 8
    assert stat.S_IMODE((root / "device-secret").stat().st_mode) == 0o600
    assert [p.name for p in root.iterdir()] == ["device-secret"]
    (root / "device-secret").write_bytes(b"short")
    with pytest.raises(ValueError, match="remove it"):
        home.device_secret(root)
    assert home.models_dir(root).is_dir()
    assert home.experts_dir(root).is_dir()
