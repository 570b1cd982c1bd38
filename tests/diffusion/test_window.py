import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ssd_diffusion.errors import InvalidStep
from ssd_diffusion.ssdlm import BlockState
from ssd_diffusion.window import StepRecord, WindowState
from ssd_kernels.types import TokenSets


def ids(*values: int) -> TokenSets:
    return TokenSets.single(np.array(values, np.int32))


def flags(*values: int) -> np.ndarray:
    return np.array(values, np.bool_)


def begin(**changes: object) -> WindowState:
    settings: dict = {"grid": (1.0, 0.6, 0.3), "noise_key": 7, "block": 4, "limit": 6} | changes
    return WindowState.begin(**settings)


def test_first_window_is_pure_noise() -> None:
    window = begin().window()
    assert window.u.tolist() == [1.0] * 4
    assert window.positions.tolist() == [0, 1, 2, 3]
    assert len(window.w_hat.ids) == 0


def test_prefix_is_committed_and_the_window_slides() -> None:
    state, committed = begin().advance(StepRecord(ids(5, 6, 7, 8), flags(1, 0, 1, 0)))
    assert committed.tolist() == [5]
    window = state.window()
    assert window.u == pytest.approx([0.6, 0.0, 0.6, 1.0])
    assert window.w_hat.rows() == [[6], [7], [8], []]
    assert (window.start, window.step) == (1, 1)
    state, committed = state.advance(StepRecord(ids(9, 7, 8, 1), flags(1, 1, 0, 0)))
    assert committed.tolist() == [9, 7]
    # the limit of 6 leaves three positions: two seen before, one new
    assert state.window().u == pytest.approx([0.3, 0.6, 1.0])


def test_open_position_stays_on_the_last_level() -> None:
    state = begin(block=2)
    for _ in range(4):
        state, _ = state.advance(StepRecord(ids(1, 2), flags(0, 0)))
    assert state.window().u == pytest.approx([0.3, 0.3])


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (StepRecord(ids(1, 2, 3), flags(1, 0, 0)), "4 open positions"),
        (StepRecord(TokenSets.of([[1], [2], [], [4]]), flags(1, 0, 0, 0)), "needs an estimate"),
        (StepRecord(TokenSets.of([[1, 2], [2], [3], [4]]), flags(1, 0, 0, 0)), "exactly one"),
    ],
)
def test_bad_records_are_refused(record: StepRecord, words: str) -> None:
    with pytest.raises(InvalidStep, match=words):
        begin().advance(record)


def test_an_accepted_position_may_not_change() -> None:
    state, _ = begin().advance(StepRecord(ids(5, 6, 7, 8), flags(0, 1, 0, 0)))
    with pytest.raises(InvalidStep, match="given up or changed"):
        state.advance(StepRecord(ids(5, 9, 7, 8), flags(1, 1, 0, 0)))
    with pytest.raises(InvalidStep, match="given up or changed"):
        state.advance(StepRecord(ids(5, 6, 7, 8), flags(1, 0, 0, 0)))


@pytest.mark.parametrize("grid", [(), (0.9, 0.5), (1.0, 1.0), (1.0, 0.5, 0.6), (1.0, 0.0), (1.0, float("nan"))])
def test_bad_grids_are_refused(grid: tuple[float, ...]) -> None:
    for kind in (WindowState, BlockState):
        with pytest.raises(InvalidStep, match="grid"):
            kind.begin(grid=grid, noise_key=0, block=4, limit=4)


@given(data=st.data(), block=st.integers(1, 6), limit=st.integers(1, 20), multi=st.booleans())
def test_any_run_commits_every_position_once(data: st.DataObject, block: int, limit: int, multi: bool) -> None:
    state = begin(block=block, limit=limit)
    text: list[int] = []
    levels: dict[int, float] = {}
    while not state.done:
        window = state.window()
        assert len(window.u) == min(block, limit - len(text))
        for position, u in zip(window.positions.tolist(), window.u.tolist(), strict=True):
            assert u <= levels.get(position, 1.0)
            levels[position] = u
        accepted = window.accepted | np.array([i == int(np.argmin(window.accepted)) for i in range(len(window.u))])
        accepted |= np.array(data.draw(st.lists(st.booleans(), min_size=len(accepted), max_size=len(accepted))))
        rows = [
            window.w_hat.row(i).tolist()
            if window.accepted[i]
            else ([i + 1, i + 9] if multi and not accepted[i] else [i + 1])
            for i in range(len(accepted))
        ]
        state, committed = state.advance(StepRecord(TokenSets.of(rows), accepted))
        text.extend(committed.tolist())
    assert len(text) == limit == state.start


def test_block_state_runs_a_block_as_a_whole() -> None:
    state = BlockState.begin(grid=(1.0, 0.5), noise_key=0, block=2, limit=3)
    state, committed = state.advance(StepRecord(ids(4, 5), flags(0, 0)))
    assert len(committed) == 0
    assert state.window().u.tolist() == [0.5, 0.5]
    with pytest.raises(InvalidStep, match="as a whole"):
        state.advance(StepRecord(ids(4, 5), flags(1, 0)))
    state, committed = state.advance(StepRecord(ids(6, 7), flags(1, 1)))
    assert committed.tolist() == [6, 7]
    window = state.window()
    assert (window.start, window.step, window.block, window.u.tolist()) == (2, 2, 1, [1.0])
    state, _ = state.advance(StepRecord(ids(1), flags(0)))
    state, committed = state.advance(StepRecord(ids(2), flags(1)))
    assert state.done
    assert committed.tolist() == [2]


def test_block_state_refuses_missing_estimates() -> None:
    state = BlockState.begin(grid=(1.0, 0.5), noise_key=0, block=2, limit=2)
    with pytest.raises(InvalidStep, match="estimate"):
        state.advance(StepRecord(TokenSets.of([[1], []]), flags(0, 0)))
    state, _ = state.advance(StepRecord(TokenSets.of([[1, 2], [3]]), flags(0, 0)))
    with pytest.raises(InvalidStep, match="exactly one"):
        state.advance(StepRecord(TokenSets.of([[1, 2], [3]]), flags(1, 1)))
