"""The device's engine against the torch engine, against itself recomputed, and without torch."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ssd_diffusion.draft_tree import DraftTree
from ssd_diffusion.errors import ContextOverflow, InvalidModel, InvalidStep
from ssd_diffusion.export.onnx import export
from ssd_diffusion.lookahead import LookaheadState
from ssd_diffusion.models.engine import TorchEngine
from ssd_diffusion.models.folder import load
from ssd_diffusion.models.tiny import write_tiny
from ssd_diffusion.onnx_engine import OnnxEngine
from ssd_diffusion.window import Window
from ssd_kernels.types import TokenSets

CONTEXT = np.arange(30, 50, dtype=np.int32)


def make(folder: Path, family: str, learned: float = 0.5, lanes: int = 1) -> Path:
    write_tiny(folder, family=family, learned=learned)  # type: ignore[arg-type]
    export(load(folder)[0], folder / "onnx", int8=True, lanes=lanes)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("onnx")
    return {family: make(root / family, family) for family in ("llama", "opt")}


@pytest.fixture
def engine(folders: dict[str, Path]) -> OnnxEngine:
    return OnnxEngine(folders["llama"], slots=3, threads=1)


def window(step: int, *, start: int = 0, u: tuple[float, ...] = (0.4, 1.0, 0.0, 0.3)) -> Window:
    sets = TokenSets.of([[60 + i] if level < 1 else [] for i, level in enumerate(u)])
    return Window(start, step, 0, np.array(u, np.float32), sets, 77)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_it_says_what_the_torch_engine_says(folders: dict[str, Path], family: str) -> None:
    ours = OnnxEngine(folders[family], threads=1)
    theirs = TorchEngine(*load(folders[family]), slots=2)
    for one in (ours, theirs):
        one.prefill([0], [CONTEXT])
    steps = [(window(0, u=(1.0,) * 4), []), (window(1), []), (window(2, start=2), [61, 62]), (window(3, start=2), [])]
    for w, committed in steps:
        for one in (ours, theirs):
            one.commit([0], [np.array(committed, np.int32)])
        np.testing.assert_allclose(
            ours.step([0], [w])[0], theirs.step([0], [w])[0], atol=2e-3
        )  # ours conditions on whole numbers
    for step, drafts, parents in ((4, [], []), (5, [7, 8, 9], [-1, 0, 1]), (6, [7, 8, 9, 7], [-1, -1, 0, 1])):
        tree = DraftTree(np.array(drafts, np.int32), np.array(parents, np.int32))
        state = LookaheadState(noise_key=1, width=4, depth=2, limit=99, start=step, step=step, drafts=tree)
        found = [one.step([0], [state.window()])[0] for one in (ours, theirs)]
        assert found[0].shape[0] == state.window().rows
        np.testing.assert_allclose(*found, atol=3e-4)
    np.testing.assert_allclose(ours.next_logits([0])[0], theirs.next_logits([0])[0], atol=3e-4)
    assert ours.forward_passes(0) == theirs.forward_passes(0)


def test_slots_joined_in_one_pass_say_what_they_say_alone(folders: dict[str, Path]) -> None:
    """With other contexts, drafts committed on the way, a step asked for again, and a window without rows ahead."""
    joined, apart = (OnnxEngine(folders["llama"], slots=3, threads=1) for _ in range(2))
    contexts = [CONTEXT, np.arange(100, 171, dtype=np.int32)]
    for one in (joined, apart):
        one.prefill([2, 0], contexts)
    for step, drafts, parents, committed in (
        (0, [], [], []), (1, [7, 8, 9], [-1, 0, 1], [5]), (1, [7, 8, 9], [-1, 0, 1], []),
        (2, [7, 9], [-1, -1], [7, 8]), (3, [], [], []),
    ):  # fmt: skip
        tree = DraftTree(np.array(drafts, np.int32), np.array(parents, np.int32))
        whole = LookaheadState(noise_key=1, width=4, depth=2, limit=99, start=step, step=step, drafts=tree).window()
        windows = [whole, whole.exact_only()]
        for one in (joined, apart):
            one.commit([2, 0], [np.array(committed, np.int32)] * 2)
        for a, b in zip(joined.step_joined([2, 0], windows), apart.step([2, 0], windows), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)
        assert [len(a) for a in apart.step([2, 0], windows)] == [whole.rows, whole.exact]
        apart.step([2, 0], windows)
        joined.step_joined([2, 0], windows)
    assert [joined.forward_passes(i) for i in (0, 2)] == [1 + 5 * 2] * 2
    assert [joined.slot_bytes(i) for i in (0, 2)] == [apart.slot_bytes(i) for i in (0, 2)]
    windows = [window(4, start=4), window(4, start=4)]
    for a, b in zip(joined.step_joined([2, 0], windows), apart.step([2, 0], windows), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_slots_that_share_runs_get_what_each_gets_alone_to_the_bit(tmp_path: Path, family: str) -> None:
    """More slots than lanes, fewer, one; other contexts, windows and drafts; a step asked for again."""
    folder = make(tmp_path / family, family, lanes=3)
    together, alone = OnnxEngine(folder, slots=5, threads=2, batch_width=3), OnnxEngine(folder, slots=5, threads=2)
    contexts = [(np.arange(1 + 17 * n) * 7 % 250).astype(np.int32) for n in range(5)]
    for one in (together, alone):
        one.prefill(range(5), contexts)
    tree = DraftTree(np.array([7, 8, 9], np.int32), np.array([-1, 0, 0], np.int32))
    for step, slots in ((0, range(5)), (1, [4, 0]), (1, range(5)), (2, [3]), (2, [0, 1, 2, 4, 3])):
        drafting = LookaheadState(noise_key=1, width=4, depth=2, limit=99, start=step, step=step, drafts=tree).window()
        kinds = [window(step), drafting, window(step, u=(1.0,)), drafting.exact_only(), window(step, u=(0.2, 0.0))]
        windows = [kinds[n] for n in slots]
        found = together.step(slots, windows)
        for n, w, got in zip(slots, windows, found, strict=True):
            np.testing.assert_array_equal(got, alone.step([n], [w])[0])
        for one in (together, alone):
            one.commit(slots, [np.array([60 + n], np.int32) for n in slots])
        assert [together.slot_bytes(n) for n in range(5)] == [alone.slot_bytes(n) for n in range(5)]
    for got, n in zip(together.next_logits([0, 1, 2, 3, 4]), range(5), strict=True):
        np.testing.assert_array_equal(got, alone.next_logits([n])[0])
    assert [together.forward_passes(n) for n in range(5)] == [alone.forward_passes(n) for n in range(5)]


def test_without_a_graph_of_lanes_slots_run_one_by_one(folders: dict[str, Path]) -> None:
    engine, alone = (OnnxEngine(folders["llama"], slots=2, threads=1, batch_width=width) for width in (2, 1))
    for one in (engine, alone):
        one.prefill([0, 1], [CONTEXT, CONTEXT[:5]])
    for a, b in zip(engine.step([0, 1], [window(0)] * 2), alone.step([0, 1], [window(0)] * 2), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_long_context_is_read_in_pieces(folders: dict[str, Path]) -> None:
    context = (np.arange(600) % 250).astype(np.int32)
    ours, theirs = OnnxEngine(folders["llama"], threads=1), TorchEngine(*load(folders["llama"]), slots=1)
    for one in (ours, theirs):
        one.prefill([0], [context])
    np.testing.assert_allclose(ours.step([0], [window(0)])[0], theirs.step([0], [window(0)])[0], atol=3e-4)
    assert ours.forward_passes(0) == 4


def test_a_cached_context_is_a_recomputed_one(engine: OnnxEngine) -> None:
    engine.prefill([0, 1], [CONTEXT[:4], CONTEXT])
    engine.commit([0], [CONTEXT[4:9]])
    engine.step([0], [window(0)])
    engine.commit([0], [CONTEXT[9:]])
    engine.step([0], [window(1)])
    # A first step has no self-conditioning on either side.
    np.testing.assert_allclose(engine.step([0], [window(0)])[0], engine.step([1], [window(0)])[0], atol=2e-4)


def test_hidden_positions_say_nothing(engine: OnnxEngine) -> None:
    """What stands behind pure noise must not reach any other row, and the key of the noise neither."""
    few, many = window(0, u=(1.0,)), window(0, u=(1.0, 1.0, 1.0))
    other = Window(0, 0, 0, many.u, many.w_hat, 999)
    engine.prefill([0, 1, 2], [CONTEXT] * 3)
    a, b, c = (engine.step([i], [w])[0] for i, w in enumerate((few, many, other)))
    np.testing.assert_allclose(a[0], b[0], atol=2e-5)
    np.testing.assert_array_equal(b, c)


def test_untrained_the_anchor_is_the_autoregressive_base(tmp_path: Path) -> None:
    plain = OnnxEngine(make(tmp_path / "plain", "llama", learned=0.0), threads=1)
    plain.prefill([0, 1], [CONTEXT] * 2)
    rows = plain.step([0], [window(0, u=(1.0,) * 5)])[0]
    np.testing.assert_allclose(rows[0], plain.next_logits([1])[0], atol=2e-5)


def test_the_same_step_again_is_the_same_to_the_bit(engine: OnnxEngine) -> None:
    engine.prefill([0], [CONTEXT])
    engine.step([0], [window(0)])
    engine.commit([0], [np.array([60, 61], np.int32)])
    first = engine.step([0], [window(1, start=2)])[0]
    np.testing.assert_array_equal(engine.step([0], [window(1, start=2)])[0], first)
    again = engine.step([0], [window(2, start=2)])[0]
    assert np.abs(again - first).max() > 1e-4  # a new step conditions on the one before


def test_rows_do_not_depend_on_their_companions(engine: OnnxEngine) -> None:
    engine.prefill([0, 1], [CONTEXT, CONTEXT[:7]])
    both = engine.step([0, 1], [window(0), window(0)])
    engine.prefill([0, 1], [CONTEXT, CONTEXT[:7]])
    np.testing.assert_array_equal(engine.step([1], [window(0)])[0], both[1])
    np.testing.assert_array_equal(engine.step([0], [window(0)])[0], both[0])


def test_one_token_is_context_enough(engine: OnnxEngine) -> None:
    engine.prefill([0], [CONTEXT[:1]])
    assert engine.step([0], [window(0)])[0].shape == (4, 256)
    assert np.isfinite(engine.next_logits([0])[0]).all()


def test_slots_count_their_bytes_and_give_them_back(engine: OnnxEngine) -> None:
    engine.prefill([0], [CONTEXT])
    engine.step([0], [window(0)])
    assert engine.slot_bytes(0) >= 2 * 2 * 19 * 8 * 4
    engine.release([0])
    assert engine.slot_bytes(0) == 0
    with pytest.raises(InvalidStep, match="no context"):
        engine.step([0], [window(0)])


def test_too_much_text_is_refused(engine: OnnxEngine) -> None:
    with pytest.raises(ContextOverflow, match="1 to 1024"):
        engine.prefill([0], [np.ones(1025, np.int32)])
    with pytest.raises(ContextOverflow):
        engine.prefill([0], [np.ones(0, np.int32)])
    engine.prefill([0], [np.ones(1022, np.int32)])
    with pytest.raises(ContextOverflow, match="1026"):
        engine.step([0], [window(0)])


def test_eight_bits_can_be_chosen(folders: dict[str, Path]) -> None:
    assert OnnxEngine(folders["llama"]).precision == "fp32"
    assert OnnxEngine(folders["llama"], precision="int8").precision == "int8"
    with pytest.raises(InvalidModel, match="precision"):
        OnnxEngine(folders["llama"], precision="fp4")


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "embed.npy", "diffusion.npz", "export.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_damaged_files_are_one_sentence(folders: dict[str, Path], tmp_path: Path, name: str, damage: str) -> None:
    folder = shutil.copytree(folders["llama"], tmp_path / "damaged")
    path = folder / "onnx" / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(InvalidModel, match="personalize again"):
        OnnxEngine(folder, threads=1)


def test_files_of_two_models_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["llama"], tmp_path / "mixed")
    write_tiny(tmp_path / "wide", width=32)
    shutil.copy(tmp_path / "wide" / "model.json", folder / "model.json")
    with pytest.raises(InvalidModel, match="do not belong together"):
        OnnxEngine(folder, threads=1)


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('torch', 'transformers', 'peft', 'safetensors'):
            raise ImportError(f'{name} is blocked')
sys.meta_path.insert(0, Block())
import numpy as np
from pathlib import Path
from ssd_diffusion.onnx_engine import OnnxEngine
from ssd_diffusion.ensemble import Ensemble, Weights
from ssd_diffusion.members import EngineMember
from ssd_diffusion.sampler import DecodeParams, denoise
engine = OnnxEngine(Path(sys.argv[1]), threads=1)
member = EngineMember(engine, 0, np.arange(40, 60, dtype=np.int32), name='expert')
with Ensemble(core=None, private=member, public=None, weights=Weights(lam=1.0)) as ensemble:
    events = list(denoise(ensemble, DecodeParams(block=4, max_tokens=6), noise_key=1, draw_key=2))
print(sum(len(e.committed) for e in events))
"""


def test_it_answers_without_torch(folders: dict[str, Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, str(folders["llama"])], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "6"
