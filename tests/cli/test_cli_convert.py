"""``ctgpu convert``."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from built import tar_bytes
from ctgpu.testing.ctrate import Volume
from raw_tars import lay_out, raw_sample, samples, write_tar
from support.command_line import run, run_here, sentence


def convert_deleting(raw: Path, folder: Path) -> tuple[object, ...]:
    """The words of a conversion that deletes its input."""
    return (
        *("convert", "--device", "cpu", "--delete-after"),
        *("--input-pattern", raw, "--output-dir", folder),
    )


@pytest.mark.slow
def test_the_command_converts_and_says_how_it_went(tmp_path: Path, real_ct: Path) -> None:
    volume = Volume.read(real_ct / "ts_example_ct_sm.nii.gz")
    sample = raw_sample("valid_1_a_1", volume.voxels, volume.spacing_mm, 0)
    write_tar(tmp_path / "raw/shard-000000.tar", {"valid_1_a_1": sample})
    for go in (run, run_here):  # the second finds nothing to do, and no input any more
        result = go(*convert_deleting(tmp_path / "raw", tmp_path / "out"))
        assert result.returncode == 0, result.stderr
        assert list((tmp_path / "raw").iterdir()) == []
        assert "1 sample in 1 shard" in result.stdout
    manifest = (tmp_path / "out/manifest.json").read_bytes()
    (tmp_path / "out/manifest.json").unlink()
    result = run_here("manifest", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert "1 of 1 sample in 1 of 1 shard, 0 failed" in result.stdout
    assert (tmp_path / "out/manifest.json").read_bytes() == manifest


@pytest.mark.slow
def test_the_command_names_what_it_keeps(tmp_path: Path) -> None:
    content = samples(0)
    content["scan_0"]["boxes"] = b"1 2 3"
    raw = lay_out(tmp_path / "raw", content, samples(2))
    arguments = convert_deleting(raw, tmp_path / "out")
    result = run_here(*arguments)
    assert result.returncode == 0, result.stderr
    assert [path.name for path in raw.iterdir()] == ["shard-000000.tar"]
    assert f"{raw / 'shard-000000.tar'} is kept" in result.stderr
    assert "scan_0.boxes" in result.stderr
    dry = run_here(*arguments, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert [path.name for path in raw.iterdir()] == ["shard-000000.tar"]


def test_what_failed_is_said_with_the_command_that_tries_it_again(tmp_path: Path) -> None:
    content = samples(0)
    content["scan_1"]["cls"] = b"3"
    raw = lay_out(tmp_path / "raw", content)
    result = run_here(*convert_deleting(raw, tmp_path / "out"))
    assert result.returncode == 1, result.stderr
    assert "1 sample failed" in result.stdout
    assert result.stderr.count("scan_1 failed in ") == 1
    assert "--retry-failed" in result.stdout
    assert [path.name for path in raw.iterdir()] == ["shard-000000.tar"]


def test_input_and_output_are_both_needed(tmp_path: Path) -> None:
    for given, missing in (
        ("--input-pattern", "--output-dir"),
        ("--output-dir", "--input-pattern"),
    ):
        result = run_here("convert", given, tmp_path)
        assert result.returncode == 2
        assert f"Missing option '{missing}'" in result.stderr


def test_finished_shards_are_compressed_and_brought_back(tmp_path: Path, built: Path) -> None:
    small, plain = tmp_path / "small", tmp_path / "plain"
    result = run_here(
        "convert", "--input-pattern", built, "--output-dir", small, "--compress", "pack"
    )
    assert result.returncode == 0, result.stderr
    assert "3 samples in 2 shards" in result.stdout
    assert "compression: pack" in result.stdout
    card = (small / "manifest.json").read_bytes()
    (small / "manifest.json").unlink()
    assert run_here("manifest", small).returncode == 0
    assert (small / "manifest.json").read_bytes() == card
    checked = run_here("verify", small)
    assert (checked.returncode, checked.stderr) == (0, "")
    result = run_here(
        "convert", "--input-pattern", small, "--output-dir", plain, "--compress", "none"
    )
    assert result.returncode == 0, result.stderr
    assert "compression" not in result.stdout
    assert tar_bytes(plain) == tar_bytes(built)
    for name in ("plan.json", "manifest.json", "shard-000001.idx"):
        assert (plain / name).read_bytes() == (built / name).read_bytes()


def test_what_another_compression_cannot_change_is_refused(tmp_path: Path, built: Path) -> None:
    words = ("convert", "--input-pattern", built, "--output-dir", tmp_path / "out")
    for flags, found in (
        (("--samples-per-shard", 3), "samples_per_shard: found 2, wanted 3"),
        (("--split", "train"), "split: found 'valid', wanted 'train'"),
        (("--retry-failed",), "retry_failed"),
        (("--delete-after",), "--delete-after is for tars of another kind"),
    ):
        result = run_here(*words, "--compress", "rice", *flags)
        assert result.returncode == 2
        assert found in sentence(result)
        assert not list(tmp_path.glob("out/*"))


def test_a_damaged_shard_is_named_and_what_was_compressed_is_kept(
    tmp_path: Path, built: Path
) -> None:
    home, out = Path(shutil.copytree(built, tmp_path / "home")), tmp_path / "out"
    tar = home / "shard-000001.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:20_000] + bytes([whole[20_000] ^ 1]) + whole[20_001:])
    words = ("convert", "--input-pattern", home, "--output-dir", out)
    assert run_here(*words, "--compress", "rice", "--shards", "0-0").returncode == 0
    kept = (out / "shard-000000.tar").stat()
    result = run_here(*words)  # the folder knows the rest
    assert result.returncode == 3
    assert str(tar) in sentence(result)
    assert "run the build there again, which rebuilds the shard" in sentence(result)
    tar.write_bytes(whole)
    result = run_here(*words)
    assert result.returncode == 0, result.stderr
    assert (out / "shard-000000.tar").stat().st_ino == kept.st_ino
    assert run_here("verify", out).returncode == 0
