"""Names of the files in a data set's folder, made and taken apart."""

from __future__ import annotations

import pytest

from ctgpu.shards.names import (
    TEMPORARY_SUFFIX,
    fence_name,
    index_name,
    journal_name,
    lease_name,
    natural_key,
    parse_fence_name,
    parse_lease_name,
    parse_shard_name,
    partial_name,
    record_name,
    session_name,
    shard_name,
)


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("shard-000012.tar", (12, "tar")),
        ("shard-1234567.json", (1234567, "json")),
        ("shard-000000.tar.partial", (0, "tar.partial")),
        ("shard-000000.journal", (0, "journal")),
        ("shard-00001.tar", None),
        # Not what the shard is called; another file would be opened in its place.
        ("shard-0000001.tar", None),
        ("shard-٠٠٠٠٠١.tar", None),
        ("shard-000001.tar.gz", None),
        ("manifest.json", None),
    ],
)
def test_names(name: str, parsed: tuple[int, str] | None) -> None:
    assert parse_shard_name(name) == parsed


def test_names_of_any_number_of_digits_have_an_order() -> None:
    names = ["a" + "9" * 6000, "a10", "a9", "a" + "0" * 6000]
    assert sorted(names, key=natural_key)[:3] == ["a" + "0" * 6000, "a9", "a10"]


@pytest.mark.parametrize("index", [0, 7, 999_999, 1_000_000, 12_345_678])
def test_every_file_of_a_shard_is_known_by_its_name(index: int) -> None:
    made = {
        "tar": shard_name(index),
        "json": record_name(index),
        "idx": index_name(index),
        "tar.partial": partial_name(index),
        "journal": journal_name(index),
    }
    for kind, name in made.items():
        assert parse_shard_name(name) == (index, kind)
        assert parse_lease_name(lease_name(name, 0)) == name
        assert parse_fence_name(name) is None
    assert sorted(map(shard_name, (10, 9, 1_000_000)), key=natural_key) == [
        "shard-000009.tar",
        "shard-000010.tar",
        "shard-1000000.tar",
    ]


def test_what_a_writer_leaves_beside_its_shard_is_known_too() -> None:
    assert parse_fence_name(fence_name(12, "0a1f")) == 12
    assert parse_fence_name(fence_name(1_234_567, "ff")) == 1_234_567
    for other in (
        fence_name(12, "*"),
        fence_name(12, "0A"),
        ".shard-12.0a.fence" + TEMPORARY_SUFFIX,
    ):
        assert parse_fence_name(other) is None
    for left in (fence_name(12, "0a1f"), session_name("abc")):
        assert left.startswith(".")
        assert left.endswith(TEMPORARY_SUFFIX)
        assert parse_shard_name(left) is None
        assert parse_lease_name(left) is None
    assert parse_lease_name("plan.json.lease.3") == "plan.json"
    for other in ("plan.json", "plan.json.lease.", "plan.json.lease.10", ".lease.1"):
        assert parse_lease_name(other) is None


def test_numbers_in_names_are_counted() -> None:
    names = ["valid_10_a_1", "valid_2_b_1", "valid_2_a_10", "valid_2_a_9"]
    assert sorted(names, key=natural_key) == [
        "valid_2_a_9",
        "valid_2_a_10",
        "valid_2_b_1",
        "valid_10_a_1",
    ]
    assert natural_key("a01") != natural_key("a1")
