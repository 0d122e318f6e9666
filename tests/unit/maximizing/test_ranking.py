from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from convlens_server.maximizing.ranking import MOST, Best


@given(st.data())
def test_it_is_what_sorting_everything_gives(data):
    shape = data.draw(st.sampled_from([(3, 4, 5), (5,), (2, 6), (1, 1, 1), (4, 1, 3), (2, 3, 2, 4)]))
    count = data.draw(st.integers(0, 40))
    # Few different values: ties are what goes wrong.
    maps = np.random.default_rng(data.draw(st.integers(0, 99))).integers(-3, 4, (count, *shape)).astype(np.float32)
    readable = [n for n in range(2 * count) if n % 2 or data.draw(st.booleans())][:count]
    maps = maps[: len(readable)]
    best = Best(shape)
    step = data.draw(st.integers(1, 20))
    for start in range(0, len(maps), step):
        best.add(maps[start : start + step], readable[start : start + step])
    files = [f"{n}.png" for n in range(2 * count)]
    ranking = best.ranking(files, skipped=3)

    assert (ranking.total, ranking.skipped) == (2 * count, 3)
    assert len(set(ranking.files)) == len(ranking.files)
    for channel in range(shape[0]):
        units = maps[:, channel].reshape(len(maps), int(np.prod(shape[1:])))
        order = sorted(range(len(maps)), key=lambda n, units=units: (-units[n].max(), n))[:MOST]
        found = ranking.index[channel]
        assert [ranking.files[n] for n in found if n >= 0] == [files[readable[n]] for n in order]
        assert (found[len(order) :] == -1).all()
        for place, n in enumerate(order):
            assert ranking.activation[channel, place] == units[n].max()
            unit = np.unravel_index(units[n].argmax(), shape[1:] or (1,))
            row, column = unit[-2:] if len(unit) > 1 else (unit[0], 0)
            assert (ranking.row[channel, place], ranking.column[channel, place]) == (row, column)


def test_what_is_no_number_is_not_ranked():
    maps = np.array([[np.nan, 1], [2, np.nan], [np.inf, -np.inf]], np.float32)
    best = Best((2,))
    best.add(maps, [0, 1, 2])
    ranking = best.ranking(["a", "b", "c"], 0)
    assert [ranking.files[n] for n in ranking.index[0] if n >= 0] == ["c", "b"]
    assert [ranking.files[n] for n in ranking.index[1] if n >= 0] == ["a"]
