"""Every command that README, docs and examples show is parsed, and run in a sandbox."""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import typer

import ctgpu
from benchmarks.harness.asking import REAL_CT_NAME
from built import read_samples
from ctgpu.building.convert import convert_tars
from ctgpu.cli.commands import app
from ctgpu.shards.plan import DEFAULT_SAMPLES_PER_SHARD
from ctgpu.sources.patients import PatientSplit
from ctgpu.spec import CT_RATE
from ctgpu.testing.ctrate import lay_out_ct_rate
from ctgpu.testing.hub import LocalHub
from raw_tars import raw_sample, write_tar
from support.command_line import run_here
from support.dicom_series import write_series
from support.phantoms import SPACING_MM, chest

REPOSITORY = Path(__file__).resolve().parent.parent
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
PAGES = [*DOCUMENTS, REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "CHANGELOG.md"]
STUDY = "valid_1_a_1"

#: Old flags, and the subcommand that takes them.
OLD_FLAGS = {
    "build": "--split --output-dir --samples-per-shard --num-workers --force --repo-id --temp-dir",
    "convert": "--input-pattern --output-dir --num-workers --delete-after",
    "verify": "--original-pattern --preprocessed-pattern --num-samples",
    "inspect": "--num-samples",
}


FILE = re.compile(
    r"[\w./*{}<>-]*\.(?:py|md|sh|sbatch|toml|txt|cfg|csv|json|jsonl|h|cpp|cu|png|idx|tar|npz|gz)\b"
)
#: Files that the tree need not have.
ELSEWHERE = re.compile(
    # What builds, previews and benchmarks leave behind.
    r"(.*/)?shard-[^/]*\.(tar|json|idx)|(plan|manifest|private/series)\.json|failures\.jsonl|sheet\.png"
    # Members of a sample, and kinds of files.
    r"|(<key>)?(\.\w+)+|nii\.gz|\*\.tar"
    # What the reader has or writes, what a source holds, what a wheel has in it.
    r"|ctgpu\.sbatch|(OLD|NEW)\.json|(\.gpu-check/)?result\.json|ctgpu/kernels"
    # Volumes, tables, lists and descriptions that are a source's.
    r"|.*\.(npz|gz|csv)|(tables/motion|no_chest_\w+)\.txt|(FILE|mine)\.toml"
    # What a page says where to get.
    rf"|{re.escape(REAL_CT_NAME)}"
)
NOT_OF_THE_TREE = {"build", "demo", "__pycache__"}


@cache
def tree() -> set[PurePosixPath]:
    """The files of the project, from its root: those that git knows of, where it is a clone."""
    if (REPOSITORY / ".git").exists() and shutil.which("git"):
        listed = subprocess.run(
            ["git", "-c", "safe.directory=*", "ls-files", "-z"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        )
        names = filter(None, listed.stdout.split("\0"))
        return {PurePosixPath(name) for name in names if (REPOSITORY / name).exists()}
    found = set()
    for folder, folders, files in os.walk(REPOSITORY):
        folders[:] = [
            name
            for name in folders
            if name == ".ci" or (name not in NOT_OF_THE_TREE and not name.startswith("."))
        ]
        place = PurePosixPath(Path(folder).relative_to(REPOSITORY))
        found |= {place / name for name in files}
    return found


@cache
def places() -> list[str]:
    """Those files, and the folders that they are in."""
    return [*map(str, tree() | {parent for path in tree() for parent in path.parents})]


def named_paths(text: str) -> set[str]:
    """What a document names of the tree: files by their suffixes, and all below its folders."""
    text = re.sub(r"\[[^]]*\]\(https?://[^)]*\)", "", text)  # files of others
    tops = "|".join(re.escape(top) for top in {path.parts[0] for path in tree() if path.parts[1:]})
    below = re.findall(rf"(?<![\w./~-])(?:\./)?(?:{tops})/[\w./*-]*", text)
    found = {name.rstrip("./").removeprefix("./") for name in [*FILE.findall(text), *below]}
    return {name for name in found if not ELSEWHERE.fullmatch(name)}


def is_in_the_tree(name: str, folder: PurePosixPath, named: set[str]) -> bool:
    """Whether a file or folder is there, from the root or from the folder of who names it.

    A name alone may also stand for files of one folder, or for one that `named` has the folder of.
    """
    patterns = {os.path.normpath(name), os.path.normpath(folder / name)}
    if any(fnmatch.filter(places(), pattern) for pattern in patterns):
        return True
    if "/" in name:
        return False
    return len({path.parent for path in tree() if path.match(name)}) == 1 or any(
        other.endswith(f"/{name}") for other in named
    )


@pytest.mark.parametrize("document", PAGES, ids=lambda path: path.name)
def test_every_named_file_is_there(document: Path) -> None:
    named = named_paths(document.read_text(encoding="utf-8"))
    folder = PurePosixPath(document.parent.relative_to(REPOSITORY))
    assert [name for name in sorted(named) if not is_in_the_tree(name, folder, named)] == []


@pytest.mark.parametrize(
    ("name", "there"),
    [
        (".ci/run", True),
        (".ci/walk", False),
        ("tests/gpu", True),
        ("tests/gpus", False),
        ("kernels/cpu/vec_*.h", True),
        ("kernels/cpu/vac_*.h", False),
        ("axes.md", True),  # beside the document
        ("../CONTRIBUTING.md", True),
        ("preprocess_math.h", True),
        ("conftest.py", False),  # one of many
        ("cuda/tile.h", False),  # of no folder that is named
        ("ctgpu/spec.pyc", False),
        ("ctgpu/__pycache__", False),
    ],
)
def test_a_file_counts_as_there_only_where_a_reader_finds_it(name: str, there: bool) -> None:
    assert is_in_the_tree(name, PurePosixPath("docs"), set()) == there


@pytest.mark.skipif(not (REPOSITORY / ".git").exists(), reason="this is no clone")
def test_files_that_git_does_not_know_of_are_not_of_the_tree() -> None:
    known = tree()
    assert PurePosixPath(".ci/hostile") in known
    assert not [path for path in known if path.suffix in (".pyc", ".so")]
    assert not any(
        part in (".venv", ".git", ".ruff_cache") for path in known for part in path.parts
    )


def test_the_documented_sizes_are_those_of_the_defaults() -> None:
    samples, sample_bytes = DEFAULT_SAMPLES_PER_SHARD, CT_RATE.size_bytes
    shard_bytes = samples * sample_bytes
    text = (REPOSITORY / "docs/migrating.md").read_text(encoding="utf-8")
    assert f"| one sample | | {sample_bytes:,} bytes |" in text
    assert re.search(rf"\| a full shard of {samples} \|.*\| {shard_bytes / 1e9:.2f} GB \|", text)
    text = (REPOSITORY / "docs/format.md").read_text(encoding="utf-8")
    volumes = f"{samples} samples of {sample_bytes / 1e6:.1f} MB"
    assert f"{volumes} are {shard_bytes / 1e9:.1f} GB" in text


def test_the_readme_is_short_and_shows_one_page_of_view() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert re.findall(r"!\[[^]]+\]\((.+?)\)", text) == ["docs/previews/view.png"]
    picture = (REPOSITORY / "docs/previews/view.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 300_000
    # What CC BY asks for, where it is shown and where it lies.
    for page in ("README.md", "docs/previews/README.md"):
        assert re.search(
            r"QIN-LSC-0028 of QIN LUNG CT.*CC BY 3\.0", (REPOSITORY / page).read_text(), re.DOTALL
        )


def test_paths_without_a_suffix_are_found_in_the_text() -> None:
    text = "`.ci/run` and tests/gpu, ~/ctgpu/x, https://x.org/docs/y, `./docs/gpu.md`. kernels/."
    assert named_paths(text) == {".ci/run", "tests/gpu", "docs/gpu.md", "kernels"}


def test_every_link_leads_to_a_file() -> None:
    links = [
        (document, target)
        for document in PAGES
        for target in re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8"))
        if "://" not in target
    ]
    assert links
    broken = [
        f"{document.name}: {target}"
        for document, target in links
        if not is_in_the_tree(
            os.path.relpath(document.parent / target, REPOSITORY), PurePosixPath(), set()
        )
    ]
    assert broken == []


def shell_lines() -> Iterator[tuple[str, str]]:
    """Document and line of everything that a reader is to type."""
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        blocks = re.findall(r"^```(?:sh|bash)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
            yield document.name, line.strip()


def commands() -> dict[str, str]:
    """Every command line of ctgpu's that is shown, once, and the documents that show it."""
    found: dict[str, list[str]] = {}
    for document, line in shell_lines():
        if line.startswith("ctgpu "):
            found.setdefault(shlex.join(shlex.split(line, comments=True)), []).append(document)
    return {line: ", ".join(dict.fromkeys(documents)) for line, documents in found.items()}


def subcommands() -> dict[str, Any]:
    return typer.main.get_command(app).commands  # type: ignore[attr-defined, no-any-return]


def test_what_is_to_be_typed_is_marked_as_shell() -> None:
    """Blocks without a language are not among those that are tried here."""
    typed = re.compile(r"^(?:\$ )?(?:ctgpu|pip|python3?|torchrun|make|sbatch|srun) ", re.MULTILINE)
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    unmarked = [
        (document.name, block)
        for document in DOCUMENTS
        for language, block in fence.findall(document.read_text(encoding="utf-8"))
        if not language and typed.search(block)
    ]
    assert unmarked == []


def test_every_extra_that_is_shown_can_be_installed() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    shown = {
        extra
        for document in DOCUMENTS
        for group in re.findall(
            r"pip install '(?:\.|ctgpu)\[([\w,]+)\]", document.read_text(encoding="utf-8")
        )
        for extra in group.split(",")
    }
    assert {"torch", "dicom", "cuda12"} <= shown
    assert shown <= set(project["project"]["optional-dependencies"])


def test_every_target_that_is_shown_is_one_of_make() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    shown = {
        target for page in PAGES for target in re.findall(r"`make ([a-z-]+)`", page.read_text())
    }
    shown |= {line.split()[1] for _, line in shell_lines() if line.startswith("make ")}
    assert {"demo", "docs", "gpu-check"} <= shown
    assert shown <= targets


def test_commands_within_sentences_have_the_options_that_they_name() -> None:
    spans = {
        (document.name, span)
        for document in DOCUMENTS
        for span in re.findall(r"`ctgpu ([a-z]+[^`]*)`", document.read_text(encoding="utf-8"))
    }
    assert len(spans) > 40
    wrong = []
    for document, span in spans:
        name, *rest = span.split()
        if name not in subcommands():
            wrong.append((document, span, name))
            continue
        known = {o for p in subcommands()[name].params for o in (*p.opts, *p.secondary_opts)}
        options = {word.partition("=")[0] for word in rest if word.startswith("--")}
        wrong += [(document, span, option) for option in options - known - {"--help"}]
    assert wrong == []


@pytest.mark.parametrize("line", commands())
def test_every_shown_command_is_parsed(line: str) -> None:
    _, subcommand, *rest = shlex.split(line)
    if subcommand.startswith("-"):
        return
    command = subcommands()[subcommand]
    # Shell variables stand for values, numbers mostly.
    rest = [re.sub(r"\$\{?\w+\}?", "1", word) for word in rest]
    command.make_context(subcommand, rest, resilient_parsing=False)


@pytest.mark.parametrize("subcommand", OLD_FLAGS)
def test_old_flags_keep_their_names(subcommand: str) -> None:
    command = subcommands()[subcommand]
    known = {name for parameter in command.params for name in parameter.opts}
    assert known.issuperset(OLD_FLAGS[subcommand].split())


def lay_out_scans(root: Path) -> None:
    """A data set of the reader's own, as docs/data_sets.md has it, with a patient in each split."""
    named = (f"P{n}" for n in range(1000))
    held_out = next(name for name in named if PatientSplit("valid", (0.9, 0.1), 1).takes(name))
    others = next(name for name in named if PatientSplit("train", (0.9, 0.1), 1).takes(name))
    for seed, name in enumerate("ab"):
        made = lay_out_ct_rate(root / "elsewhere", {name: chest((60, 56, 40), seed)}, tables=())
        (root / "scans").mkdir(exist_ok=True)
        made[name].rename(root / "scans" / f"{name}.nii.gz")
    (root / "labels.csv").write_text(f"file,patient,nodule\na,{held_out},1\nb,{others},0\n")
    (root / "reports.csv").write_text("file,findings\na,A nodule.\n")
    (root / "mine.toml").write_text('name = "mine"\n')
    affine = np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0])
    write_series(root / "pacs/1", chest((60, 56, 40)).voxels.astype(np.int16), affine)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the documents take for granted: originals, data sets, old shards, scans, and a Hub."""
    root = tmp_path_factory.mktemp("made")
    lay_out_scans(root)
    volume = chest()
    lay_out_ct_rate(root / "CT-RATE", {STUDY: volume})
    ctgpu.build(root / "shards/valid", source=root / "CT-RATE", device="cpu")
    raw = raw_sample(STUDY, volume.voxels, volume.spacing_mm, 0)
    write_tar(root / "old/raw/shard-000000.tar", {STUDY: raw})
    sample = read_samples(root / "shards/valid")[STUDY]
    old = {"bin": sample.volume, "json": b'{"preprocessed": true}', "cls": bytes(72)}
    write_tar(root / "old/preprocessed/shard-000000.tar", {STUDY: old})
    convert_tars(root / "old/raw", root / "shards/converted", device="cpu")
    convert_tars(root / "shards/valid", root / "shards/rice", compress="rice")
    ctgpu.build(root / "shards/mine", source=root / "scans", device="cpu")
    ctgpu.build(root / "shards/clinic", source=root / "pacs", device="cpu")
    with LocalHub(root / "CT-RATE", "ibrahimhamamci/CT-RATE", token="hf_docs") as hub:
        (root / "endpoint").write_text(hub.url)
        yield root


def sandbox(made: Path, place: Path) -> None:
    """A copy without the bytes: files here are replaced, never changed in place."""
    for name in ("shards", "old", "CT-RATE", "scans", "pacs"):
        shutil.copytree(made / name, place / name, copy_function=os.link)
    for name in ("labels.csv", "reports.csv", "mine.toml"):
        os.link(made / name, place / name)


def environment(made: Path, home: Path) -> dict[str, str]:
    return os.environ | {
        "HF_ENDPOINT": (made / "endpoint").read_text(),
        "HF_TOKEN": "hf_docs",
        "HF_HOME": str(home / "hf"),
        "PYTHONPATH": str(REPOSITORY),
        "COLUMNS": "120",
    }


def runnable() -> list[str]:
    """Commands that need neither a cluster, nor the shell, nor something that is not there."""
    return [
        line for line in commands() if not re.search(r"--ray|\$|ctgpu demo|ctgpu -|--shards", line)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("line", runnable())
def test_every_shown_command_runs(
    tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    shown_in = commands()[line]
    sandbox(made, tmp_path)
    line = line.replace("/data/CT-RATE", str(tmp_path / "CT-RATE"))
    line = re.sub(r"\{000000\.\.\d+\}", "{000000..000000}", line)
    line = re.sub(r"--device cuda\S*", "--device cpu", line)
    words = shlex.split(line)
    if words[1] in ("build", "convert") and "--output-dir" in words:
        target = tmp_path / words[words.index("--output-dir") + 1]
        if target.exists() and {"--split", "--source", "--input-pattern"} & set(words):
            shutil.rmtree(target)  # shown as the first command of a new data set
    if words[1] == "describe" and "--output" in words:
        (tmp_path / words[words.index("--output") + 1]).unlink()  # likewise of a new description
    monkeypatch.chdir(tmp_path)
    result = run_here(*words[1:], **environment(made, tmp_path), HF_HUB_OFFLINE="0")
    # Where there is no network or device, doctor says so with 3.
    assert result.returncode in ((0, 3) if words[1] == "doctor" else (0,)), shown_in + result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("local", [True, False])
def test_the_example_builds_a_data_set_and_goes_on(tmp_path: Path, made: Path, local: bool) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "ctgpu").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ctgpu.cli "$@"\n')
    (tools / "ctgpu").chmod(0o755)
    variables = environment(made, tmp_path)
    variables["PATH"] = f"{tools}:{variables['PATH']}"
    source = [str(made / "CT-RATE")] if local else []
    # Of the Hub it goes on as it does of a folder.
    for _ in range(2 if local else 1):
        result = subprocess.run(
            [str(REPOSITORY / "examples/build_dataset.sh"), "valid", "out", *source],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            timeout=300,
            env=variables,
        )
        assert result.returncode == 0, result.stderr
        assert "every byte is as it was written" in result.stdout
        assert STUDY in result.stdout
