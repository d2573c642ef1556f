"""Measured quantities: how they are made, found, held against each other and shown."""

from __future__ import annotations

from benchmarks.harness.measuring import (
    in_words,
    is_peers,
    measured,
    measured_leaves,
    more_is_better,
    rounds,
    three_digits,
    with_ratio,
)


def test_nothing_measured_hides_where_no_one_looks() -> None:
    tree = {"a": {"time": measured([2.0, 1.0], "s"), "of": 3}, "b": [1], "c": "text"}
    assert [path for path, _ in measured_leaves(tree)] == [("a", "time")]
    assert measured([3.0, 1.0, 2.0], "s")["median"] == 2.0


def test_rates_are_better_the_more() -> None:
    assert [more_is_better(unit) for unit in ("samples/s", "GB/s", "s", "bytes")] == [
        *(True, True),
        *(False, False),
    ]


def test_peers_are_the_contenders_other_than_ctgpu() -> None:
    assert is_peers(("formats", ".npz", "contenders", "old, one thread", "rate"))
    assert not is_peers(("formats", ".npz", "contenders", "ctgpu", "rate"))
    assert not is_peers(("sizes", "64 × 64 × 64", "time"))


def test_figures_are_written_with_three_digits_and_a_unit_of_fitting_size() -> None:
    assert in_words(0.0271234, "s") == "27.1 ms"
    assert in_words(12.0, "s") == "12.0 s"
    assert in_words(0.0000042, "s") == "4.20 µs"
    assert in_words(1.611e9, "bytes") == "1.61 GB"
    assert in_words(2.1622, "samples/s") == "2.16 samples/s"
    assert in_words(0, "bytes") == "0 bytes"
    assert [three_digits(value) for value in (1234.5, 0.00012345)] == ["1234", "0.000123"]


def test_runs_take_turns_and_warm_ups_are_left_out() -> None:
    turns: list[str] = []

    def run(name: str) -> int:
        turns.append(name)
        return len(turns)

    kept = rounds({name: lambda name=name: run(name) for name in "ab"}, 2)  # type: ignore[misc]
    assert turns == ["a", "b"] * 3
    assert kept == {"a": [3, 5], "b": [4, 6]}


def test_a_ratio_is_that_of_the_medians_in_the_direction_of_its_name() -> None:
    facts = {
        name: {"time": measured(runs, "s")}
        for name, runs in (("ctgpu", [1.0, 2.0, 9.0]), ("other", [8.0]))
    }
    with_ratio(facts, "this_over_ctgpu", "ctgpu")
    with_ratio(facts, "ctgpu_over_this", "ctgpu")
    assert [facts["other"][key] for key in ("this_over_ctgpu", "ctgpu_over_this")] == [4.0, 0.25]
    assert facts["ctgpu"]["this_over_ctgpu"] == 1.0
