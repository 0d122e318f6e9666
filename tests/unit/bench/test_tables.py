"""Goals are judged by the median; a report goes between the markers of its own script."""

from __future__ import annotations

import pytest

from tables import goal, goal_table, update_readme


@pytest.mark.parametrize(
    ("values", "limits", "reached"),
    [
        ([0.5, 0.9, 2.0], {"low": 0.9}, True),
        ([0.5, 0.89, 2.0], {"low": 0.9}, False),
        ([0.05, 0.1, 0.5], {"high": 0.1}, True),
        ([0.05, 0.11, 0.01, 0.5, 0.2], {"high": 0.1}, False),
        ([], {"low": 1}, None),
    ],
)
def test_a_goal_is_judged_by_the_median(values, limits, reached):
    assert goal("speed", values, **limits)["reached"] is reached


def test_a_goal_missed_stands_out_in_the_table():
    rows = goal_table([goal("speed", [0.5], low=0.9), goal("rest", [], high=3)]).splitlines()[2:]
    assert rows == ["| speed | ≥ 0.9 | 0.5 | **no** |", "| rest | ≤ 3 | not measured | – |"]


def test_a_report_replaces_its_own_part_of_the_readme(tmp_path):
    readme = tmp_path / "README.md"
    one, other = (
        f"<!-- bench/{name} writes from here -->\n%s\n<!-- bench/{name} writes to here -->\n"
        for name in ("serving.py", "training.py")
    )
    readme.write_text("before\n" + one % "old" + "between\n" + other % "kept" + "after\n")
    for _ in range(2):
        update_readme(readme, "serving.py", "| new |")
    assert readme.read_text() == "before\n" + one % "| new |" + "between\n" + other % "kept" + "after\n"


def test_a_readme_without_the_markers_is_left_alone(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("nothing")
    with pytest.raises(ValueError, match=r"training\.py writes from here"):
        update_readme(readme, "training.py", "| new |")
    assert readme.read_text() == "nothing"
