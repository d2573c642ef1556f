"""Small builds put to the test, for the fault tests and ``benchmarks/run_reliability.py``."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import random
import re
import select
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import corpus
import numpy as np

from built import read_samples
from ctgpu.building.builder import build
from ctgpu.building.events import Event, SampleWritten, ignore
from ctgpu.errors import StorageError
from ctgpu.shards.index import index_text
from ctgpu.shards.names import TEMPORARY_SUFFIX, index_name, record_name, shard_name
from ctgpu.shards.plan import Plan
from ctgpu.shards.record import Member, SampleEntry, ShardRecord
from ctgpu.shards.tar import place_sample
from ctgpu.sources.hub import source as hub_module
from ctgpu.sources.hub.transfer import Patience
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import (
    LABEL_NAMES,
    Volume,
    chest_phantom,
    lay_out_ct_rate,
    table_names,
    write_tables,
)
from ctgpu.testing.hub import Faults, LocalHub
from ctgpu.volume.ref import VOLUME_SUFFIXES, SampleRef, strip_volume_suffix

REPOSITORY = Path(__file__).resolve().parent.parent.parent

SPACING_MM = (3.5, 3.0, 5.0)
SPEC = Spec(target_spacing_mm=(4.0, 4.0, 6.0), shape_hwd=(90, 90, 50))
SAMPLES_PER_SHARD = 4

#: Fails in fractions of a second what takes minutes in earnest.
QUICK = replace(
    Patience(),
    first_wait_s=0.001,
    longest_wait_s=0.02,
    stall_s=0.3,
    slowest_bytes_per_s=10_000.0,
)


def make_source(root: Path, samples: int, *, broken: int | None = None) -> dict[str, Path]:
    """A CT-RATE tree of phantoms; the sample number `broken` is cut short.  Paths by study id."""
    paths = lay_out_ct_rate(
        root,
        {
            f"valid_{n}_a_1": Volume(chest_phantom((90, 80, 60), SPACING_MM, n), SPACING_MM)
            for n in range(1, samples + 1)
        },
    )
    if broken is not None:
        path = paths[f"valid_{broken}_a_1"]
        os.truncate(path, path.stat().st_size // 2)
    return paths


def snapshot(folder: Path) -> dict[str, Any]:
    """All that two builds of one plan must have in common, by file name.

    That is every byte of every file, but for what records say about the run; files that only an
    interrupted build leaves are part of it, temporary ones are not.
    """
    contents: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        if path.name.endswith(TEMPORARY_SUFFIX):
            continue
        content = path.read_bytes()
        if path.suffix == ".json" and path.name.startswith("shard-"):
            contents[path.name] = {k: v for k, v in json.loads(content).items() if k != "run"}
        else:
            contents[path.name] = content
    return contents


@contextlib.contextmanager
def quick_patience() -> Iterator[None]:
    """Builds in this process give failing transfers up after little time."""
    usual = hub_module.Patience
    hub_module.Patience = lambda: QUICK  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        hub_module.Patience = usual  # type: ignore[misc]


class Builder:
    """Runs builds in children of their own; use it as a context.

    Parameters
    ----------
    work_dir : Path
        For the children's log.
    host : str, optional
        What the children take their host to be called; needs the right to ``unshare --uts``.
    """

    def __init__(self, work_dir: Path, host: str | None = None) -> None:
        self._log = work_dir / f"events-{host or 'here'}"
        self._seen = 0
        child = [sys.executable, str(Path(__file__).with_name("build_child.py"))]
        elsewhere = ["unshare", "--uts", "sh", "-c", f'hostname {host} && exec "$@"', "sh"]
        self._process = subprocess.Popen(
            [*elsewhere, *child] if host else child,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )

    def start(self, folder: Path, options: dict[str, Any], **kill: Any) -> None:
        """Begin a build; `kill` is one of the ways of ``build_child.py``."""
        job = {"folder": str(folder), "log": str(self._log), "options": options, **kill}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()

    def stopped(self) -> int | None:
        """Wait until the child has stopped itself, and give its number; None where it has ended."""
        assert self._process.stdout is not None
        while not select.select([self._process.stdout], [], [], 0.01)[0]:
            text = self._log.read_text() if self._log.exists() else ""
            if line := re.search(r"^stopped \w+ (\d+)$", text, re.MULTILINE):
                self._log.write_text(text.replace(line[0], "was " + line[0]))
                return int(line[1])
        return None

    def wait(self) -> tuple[int, list[list[str]]]:
        """Exit code (negative: the signal that ended it) and the words of the new events."""
        assert self._process.stdout is not None
        code = int(self._process.stdout.readline())
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        new, self._seen = lines[self._seen :], len(lines)
        return code, [line.split(" ", 1) for line in new]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@dataclass
class Kills:
    """What came of killing a build again and again.

    Attributes
    ----------
    kills : int
        How many SIGKILLs struck.
    moments : Counter
        Where: the system call that was about to be made, ``download`` or ``any time``.
    builds : int
        Builds that were completed in between, all of them compared with the undisturbed one.
    redone : list of int
        Per kill, the samples that had been fetched and had to be fetched again.
    written_twice : list of str
        Keys of samples that were written again after they had been reported as written.
    different : list of str
        Files that differ from those of the undisturbed build.
    in_flight : int
        Samples that may be in flight at a time.
    seconds : float
        All of it.
    """

    kills: int = 0
    moments: Counter[str] = field(default_factory=Counter)
    builds: int = 0
    redone: list[int] = field(default_factory=list)
    written_twice: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    in_flight: int = 0
    seconds: float = 0.0


def kill_and_resume(work_dir: Path, *, samples: int, kills: int, seed: int) -> Kills:
    """Kill builds from a local Hub `kills` times, resume each, and compare what comes out."""
    from ctgpu.building.pipeline import Workers
    from ctgpu.engines import open_engine

    chance, result, began = random.Random(seed), Kills(), time.perf_counter()
    engine = open_engine("cpu")
    result.in_flight = Workers.for_machine(1, engine.concurrency).most_in_flight
    engine.close()
    make_source(work_dir / "source", samples, broken=samples // 2)
    with LocalHub(work_dir / "source") as hub, Builder(work_dir) as builder:
        options = {
            "repo_id": hub.repo_id,
            "endpoint": hub.url,
            "spec": SPEC.to_dict(),
            "samples_per_shard": SAMPLES_PER_SHARD,
            "num_workers": 1,
        }
        builder.start(work_dir / "whole", options)
        code, events = builder.wait()
        assert code == 1, events
        expected = snapshot(work_dir / "whole")
        words = events[-1][1].split()
        calls, usual_s = int(words[0]), float(words[3])
        while result.kills < kills:
            folder = work_dir / f"killed-{result.builds}"
            fetches: list[set[str]] = []
            written: Counter[str] = Counter()
            while True:
                known = len(hub.requests)
                moment = _start(builder, folder, options, hub, chance, calls, usual_s)
                code, events = builder.wait()
                hub.faults.bodies.clear()
                fetches.append({r.path for r in hub.requests[known:] if r.path.endswith(".gz")})
                written.update(rest[0] for kind, *rest in events if kind == "written")
                if code != -9:
                    break
                result.kills += 1
                struck = [rest[0] for kind, *rest in events if kind == "killed"]
                result.moments[struck[0] if struck else moment] += 1
            assert code == 1, events
            result.builds += 1
            for k, fetched in enumerate(fetches[:-1]):
                result.redone.append(len(fetched & set().union(*fetches[k + 1 :])))
            result.written_twice += [key for key, count in written.items() if count > 1]
            found = snapshot(folder)
            result.different += [
                name
                for name in sorted(found.keys() | expected.keys())
                if found.get(name) != expected.get(name)
            ]
    result.seconds = time.perf_counter() - began
    return result


def _start(
    builder: Builder,
    folder: Path,
    options: dict[str, Any],
    hub: LocalHub,
    chance: random.Random,
    calls: int,
    usual_s: float,
) -> str:
    """Begin a build that will be killed somehow; returns how."""
    moment = chance.choice(["call", "call", "call", "any time", "download"])
    if moment == "call":
        builder.start(folder, options, kill_at_call=chance.randint(1, calls))
    elif moment == "any time":
        builder.start(folder, options, kill_after_s=chance.uniform(0.0, usual_s))
    else:
        kill_file = folder.parent / "kill"
        kill_file.unlink(missing_ok=True)
        known = len(hub.requests)
        # The next bodies are tables; then a volume stalls half way, and its reader dies.
        hub.faults.bodies = []
        builder.start(folder, options, kill_file=str(kill_file))
        wanted = chance.randint(1, 4)
        deadline = time.monotonic() + usual_s
        while time.monotonic() < deadline:
            volumes = [r for r in hub.requests[known:] if r.path.endswith(".gz")]
            if len(volumes) >= wanted and not hub.faults.bodies:
                hub.faults.bodies = ["stall"]
                break
            time.sleep(0.001)
        while hub.faults.bodies and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.01)
        kill_file.touch()
    return moment


@dataclass(frozen=True)
class BadHub:
    """What came of building from a Hub that fails: see :func:`build_from_bad_hub`."""

    samples: int
    requests_needed: int
    requests_made: int
    failed: int
    different: list[str]
    seconds: float


def build_from_bad_hub(work_dir: Path, faults: Faults, *, samples: int, workers: int) -> BadHub:
    """Build from a good Hub, then from one with `faults`, and compare."""
    make_source(work_dir / "source", samples)
    snapshots, requests, failed, began = [], [], 0, time.perf_counter()
    for name, way in (("good", Faults()), ("bad", faults)):
        with (
            LocalHub(work_dir / "source", redirect=True, page_size=5, faults=way) as hub,
            quick_patience(),
        ):
            began = time.perf_counter()
            report = build(
                work_dir / name,
                repo_id=hub.repo_id,
                endpoint=hub.url,
                spec=SPEC,
                samples_per_shard=SAMPLES_PER_SHARD,
                num_workers=workers,
                device="cpu",
            )
            failed = len(report.failures)
            requests.append(len(hub.requests))
        snapshots.append(snapshot(work_dir / name))
    good, bad = snapshots
    return BadHub(
        samples,
        requests[0],
        requests[1],
        failed,
        [name for name in sorted(good.keys() | bad.keys()) if good.get(name) != bad.get(name)],
        time.perf_counter() - began,
    )


@dataclass
class Corrupted:
    """What came of corrupted inputs.

    Attributes
    ----------
    inputs : int
        How many.
    refused : Counter
        Those in the ledger, by stage.
    accepted_unharmed : int
        Those whose damage changed nothing: their samples are those of the undamaged file.
    accepted_wrong : list of str
        Study ids of samples that are something else.
    odd_errors : list of str
        Ledger entries that are not one sentence of an error that is expected of a sample.
    seconds : float
        Of the build.
    """

    inputs: int
    refused: Counter[str]
    accepted_unharmed: int
    accepted_wrong: list[str]
    odd_errors: list[str]
    seconds: float


_CORPUS_SPEC = Spec(target_spacing_mm=(1.0, 1.0, 2.0), shape_hwd=(30, 24, 10))


def build_corrupted(work_dir: Path, damaged: Iterable[corpus.Hostile]) -> Corrupted:
    """Build a folder of damaged files, behind the undamaged ones that they were made of."""
    undamaged = list(corpus.valid_files().items())
    _lay_out(work_dir / "source", [*undamaged, *damaged])
    return _judge(work_dir / "out", len(undamaged), source=work_dir / "source")


def build_rotten_hub(work_dir: Path, *, count: int, seed: int) -> Corrupted:
    """Build from a Hub whose files were damaged after it had listed their checksums.

    They have no checksum of their own: plain ``.nii``.
    """
    chance = np.random.default_rng(seed)
    good = corpus.nifti_bytes(corpus.true_voxels())
    paths = _lay_out(work_dir / "source", [("good.nii", good)] * (count + 1))
    with LocalHub(work_dir / "source") as hub, quick_patience():
        for path in paths:
            hub.sha256(path)
        for path in paths[1:]:
            bad = good
            while bad == good or len(bad) != len(good):
                damage = corpus.DAMAGES[int(chance.integers(len(corpus.DAMAGES)))]
                # Half of it strikes the header.
                end = len(good) if chance.random() < 0.5 else 352
                bad = damage(good, int(chance.integers(end)), chance)
            listed = path.stat()
            path.write_bytes(bad)
            os.utime(path, ns=(listed.st_atime_ns, listed.st_mtime_ns))
        return _judge(work_dir / "out", 1, repo_id=hub.repo_id, endpoint=hub.url)


def _lay_out(root: Path, files: Iterable[tuple[str, bytes]]) -> list[Path]:
    """Write files under study ids, with a metadata CSV that has a row for each."""
    folder = root / "dataset" / "valid_fixed"
    folder.mkdir(parents=True)
    paths = []
    for k, (name, data) in enumerate(files):
        suffix = next(s for s in VOLUME_SUFFIXES if name.endswith(s))
        paths.append(folder / f"valid_{k}_a_1{suffix}")
        paths[-1].write_bytes(data)
    volume = Volume(corpus.true_voxels(), (0.7, 0.7, 1.5))
    write_tables(root, {strip_volume_suffix(path.name): volume for path in paths})
    return paths


def _judge(folder: Path, undamaged: int, **options: Any) -> Corrupted:
    """Build, and hold every sample against the undamaged one of the same format."""
    began = time.perf_counter()
    report = build(folder, spec=_CORPUS_SPEC, device="cpu", **options)
    seconds = time.perf_counter() - began
    samples = read_samples(folder)
    expected = {}
    wrong = []
    for number, (key, sample) in enumerate(samples.items()):
        facts = sample.metadata
        suffix = Path(facts["source"].pop("path")).name.partition(".")[2]
        del facts["study_id"], facts["report"]
        if number < undamaged:
            expected[suffix] = sample.volume, facts
        elif (sample.volume, facts) != expected[suffix]:
            wrong.append(key)
    odd = [
        f"{entry['key']}: {entry['error_class']}: {entry['message']}"
        for entry in report.failures
        if entry["error_class"] not in ("FetchError", "DecodeError", "IntensityError")
        or "\n" in entry["message"]
        or not 20 < len(entry["message"]) < 500
    ]
    return Corrupted(
        len(report.failures) + len(samples) - undamaged,
        Counter(str(entry["stage"]) for entry in report.failures),
        len(samples) - undamaged - len(wrong),
        wrong,
        odd,
        seconds,
    )


@contextlib.contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[Path]:
    """A file system of its own in memory; :class:`PermissionError` where one may not be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise PermissionError("there is no mount program") from error
    if mounted.returncode != 0:
        raise PermissionError(mounted.stderr.strip())
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@dataclass
class NoSpace:
    """What came of a disk that fills up: see :func:`fill_and_resume`."""

    points: int = 0
    builds: int = 0
    stopped_by: Counter[str] = field(default_factory=Counter)
    odd_errors: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)


def fill_and_resume(work_dir: Path, *, points: int, samples: int, seed: int) -> NoSpace:
    """Fill a build's disk `points` times at random moments, free it, resume, and compare."""
    chance, result = random.Random(seed), NoSpace()
    make_source(work_dir / "source", samples)
    options: dict[str, Any] = {
        "source": work_dir / "source",
        "spec": SPEC,
        "samples_per_shard": SAMPLES_PER_SHARD,
        "device": "cpu",
    }
    build(work_dir / "whole", **options)
    expected = snapshot(work_dir / "whole")
    with small_disk(work_dir / "disk", (samples + 4) * (SPEC.size_bytes + (128 << 10))) as disk:
        folder, ballast = disk / "out", disk / "ballast"
        while result.points < points or folder.exists():
            fill = _Filler(ballast, chance, samples) if result.points < points else ignore
            try:
                build(folder, **options, watch=fill)
            except StorageError as error:
                result.points += 1
                if "no space is left" not in str(error) or "\n" in str(error):
                    result.odd_errors.append(str(error))
                result.stopped_by[str(error).partition(" cannot")[0].rpartition(".")[2]] += 1
                ballast.unlink()
                continue
            found = snapshot(folder)
            result.builds += 1
            result.different += [
                name
                for name in sorted(found.keys() | expected.keys())
                if found.get(name) != expected.get(name)
            ]
            shutil.rmtree(folder)
            ballast.unlink(missing_ok=True)
    return result


class _Filler:
    """A watcher that leaves a random rest of the disk after a random number of samples."""

    def __init__(self, ballast: Path, chance: random.Random, samples: int) -> None:
        self._ballast = ballast
        self._after = chance.randrange(samples)
        # Whole samples, part of one, or a few pages for the small files of a commit.
        self._rest_bytes = chance.choice(
            [chance.randrange(3 * SPEC.size_bytes), chance.randrange(8) * 4096]
        )

    def __call__(self, event: Event) -> None:
        if not isinstance(event, SampleWritten):
            return
        if self._after == 0:
            free_bytes = shutil.disk_usage(self._ballast.parent).free
            fill_bytes = free_bytes - self._rest_bytes
            if fill_bytes > 0:
                with self._ballast.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, fill_bytes // 4096 * 4096)
        self._after -= 1


def declare_huge_volumes(root: Path) -> None:
    """Make the metadata of a source say that every volume has 1024 × 1024 × 2000 voxels."""
    (path,) = root.glob("dataset/metadata/*.csv")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row.update(Rows="1024", Columns="1024", NumberofSlices="2000")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


# A process inherits the peak that getrusage() tells from its parent; this one is its own.
_PEAK_RSS_BYTES = """
from pathlib import Path
def peak_rss_bytes():
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])
"""

_MEASURED_BUILD = (
    _PEAK_RSS_BYTES
    + """
import json, sys
from ctgpu.building.builder import build
from ctgpu.spec import Spec
job = json.load(sys.stdin)
spec = Spec.from_dict(job["spec"])
before = peak_rss_bytes()
build(job["folder"] + "-1", source=job["source"], spec=spec, limit=1, device="cpu", num_workers=1)
one = peak_rss_bytes()
report = build(
    job["folder"], source=job["source"], spec=spec, device="cpu", num_workers=job["workers"],
    memory_limit_bytes=job["limit_bytes"], samples_per_shard=4,
)
print(json.dumps({
    "written": report.written,
    "peak_reserved_bytes": report.pipeline.peak_reserved_bytes,
    "peak_rss_bytes": peak_rss_bytes(),
    "imports_rss_bytes": before,
    "one_sample_rss_bytes": one,
}))
"""
)


def build_measured(
    folder: Path, source: Path, spec: Spec, *, limit_bytes: int, workers: int
) -> dict[str, int]:
    """Build in a process of its own; samples written and memory used."""
    job = {
        "folder": str(folder),
        "source": str(source),
        "spec": spec.to_dict(),
        "limit_bytes": limit_bytes,
        "workers": workers,
    }
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED_BUILD],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=True,
    )
    figures: dict[str, int] = json.loads(done.stdout)
    return figures


def lay_out_names(root: Path, samples: int) -> None:
    """A train split as large as wanted, of files that hold a few bytes, with full-size CSVs."""
    folder = root / "dataset" / "train_fixed"
    text = "Trachea and both main bronchi are open. No occlusive pathology was detected. " * 18
    names = []
    for n in range(samples):
        scan, recon = divmod(n, 2)
        names.append(f"train_{scan + 1}_a_{recon + 1}")
        place = folder / f"train_{scan + 1}" / f"train_{scan + 1}_a"
        if recon == 0:
            place.mkdir(parents=True)
        (place / f"{names[-1]}.nii.gz").write_bytes(b"%d" % n)
    tables: dict[str, dict[str, str]] = {
        "metadata": {
            "Manufacturer": "Phantom",
            **dict(zip(("RescaleSlope", "RescaleIntercept"), ("1", "-1024"), strict=True)),
            "XYSpacing": "[0.75, 0.75]",
            "ZSpacing": "1.5",
            **dict(zip(("Rows", "Columns", "NumberofSlices"), ("512", "512", "300"), strict=True)),
        },
        "labels": dict.fromkeys(LABEL_NAMES, "0"),
        "reports": {"Findings_EN": text, "Impressions_EN": text[:300]},
    }
    for table, columns in tables.items():
        path = root / table_names(table, "train")[0]
        path.parent.mkdir(parents=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["VolumeName", *columns])
            writer.writerows([f"{name}.nii.gz", *columns.values()] for name in names)


_MEASURED_PLAN = (
    _PEAK_RSS_BYTES
    + """
import json, sys, time
from pathlib import Path
from ctgpu.engines import open_engine
from ctgpu.building.planning import make_plan
from ctgpu.building.request import Request
from ctgpu.building.events import ignore
from ctgpu.shards.plan import Plan
folder, repo_id, endpoint = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
engine = open_engine("cpu")
began = time.perf_counter()
request = Request(split="train", repo_id=repo_id, endpoint=endpoint)
plan = make_plan(request, engine.arithmetic, ignore).plan
folder.mkdir()
Plan.create(folder, plan)
print(json.dumps({
    "samples": len(plan.samples),
    "shards": plan.shards,
    "seconds": time.perf_counter() - began,
    "peak_rss_bytes": peak_rss_bytes(),
}))
"""
)


def plan_measured(work_dir: Path, samples: int) -> dict[str, Any]:
    """Plan a build of `samples` volumes from a local Hub, each in a process of its own."""
    lay_out_names(work_dir / "names", samples)
    serve = [sys.executable, "-m", "ctgpu.testing.hub", str(work_dir / "names")]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True, env=environment) as hub:
        assert hub.stdout is not None
        try:
            url = hub.stdout.readline().strip()
            plan = [
                sys.executable,
                "-c",
                _MEASURED_PLAN,
                str(work_dir / "planned"),
                "local/ct-rate",
            ]
            done = subprocess.run(
                [*plan, url], capture_output=True, text=True, env=environment, check=True
            )
        finally:
            hub.terminate()
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def make_plan_of(
    folder: Path, shards: int, samples_per_shard: int, source: dict[str, str], last: SampleRef
) -> Plan:
    """A saved plan of volumes that nobody has, but for the last one."""
    count = shards * samples_per_shard
    refs = [
        SampleRef.of_file(f"dataset/valid_fixed/valid_{n}_b_1.nii.gz", 1 << 27)
        for n in range(1, count)
    ]
    plan = Plan(
        dataset=source["location"],
        split="valid",
        spec=SPEC,
        arithmetic="ctgpu",
        fingerprint=SPEC.fingerprint("ctgpu"),
        source=source,
        selection={
            "recon": "all",
            "order": "path",
            "seed": 0,
            "limit": None,
            "keep_no_chest": False,
            "spacing_fallback": "fail",
        },
        samples_per_shard=samples_per_shard,
        class_names=tuple(LABEL_NAMES),
        samples=[replace(ref, provenance="fixed") for ref in (*refs, last)],
    )
    folder.mkdir(parents=True)
    return Plan.create(folder, plan)


def pretend_committed(folder: Path, plan: Plan, shards: range) -> None:
    """Tars of holes and records as of full-size volumes, as if these shards had been made."""
    sizes = {"bin": 2 * 480 * 480 * 240, "cls": 72, "txt": 1200, "json": 3000}
    for index in shards:
        position, entries = 0, []
        for sample in plan.samples_of(index):
            placement = place_sample(position, sample.key, sizes)
            members = {
                extension: Member(offset, sizes[extension], "0" * 32)
                for extension, offset in zip(sizes, placement.offsets, strict=True)
            }
            entries.append(
                SampleEntry(sample.key, sample.study_id, placement.start, placement.end, members)
            )
            position = placement.end
        record = ShardRecord(index, plan.fingerprint, position + 1024, entries)
        with (folder / shard_name(index)).open("wb") as tar:
            os.truncate(tar.fileno(), record.size_bytes)
        (folder / record_name(index)).write_bytes(record.to_json())
        (folder / index_name(index)).write_bytes(index_text(record))


_MEASURED_RUN = """
import json, os, sys, time
tars = []
def audit(event, arguments):
    if event == "open" and str(arguments[0]).endswith(".tar"):
        tars.append(str(arguments[0]))
sys.addaudithook(audit)
from ctgpu.building.builder import build
from ctgpu.building.events import Planned, ShardResumed
import huggingface_hub, nibabel
moments = {}
began = time.perf_counter()
def watch(event):
    moments.setdefault(type(event).__name__, time.perf_counter() - began)
report = build(sys.argv[1], device="cpu", endpoint=sys.argv[2] or None, watch=watch)
print(json.dumps({
    "seconds": time.perf_counter() - began,
    "seconds_to_begin": moments["Planned"],
    "written": report.written,
    "total_samples": report.manifest["total_samples"],
    "tars_opened": tars,
}))
"""


def run_measured(folder: Path, endpoint: str = "") -> dict[str, Any]:
    """Run a build again in a process of its own: its time, and the tars that it opened."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED_RUN, str(folder), endpoint],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def resume_measured(work_dir: Path, committed: int, samples_per_shard: int = 1) -> dict[str, Any]:
    """Resume a build of which `committed` shards are done and one sample is left."""
    root = work_dir / "one"
    if not root.exists():
        make_source(root, 1)
    with LocalHub(root) as hub:
        files = hub.commits[hub.head].items()
        last = next(SampleRef.of_file(n, p.stat().st_size) for n, p in files if n.endswith(".gz"))
        folder = work_dir / f"committed-{committed}"
        source = {"kind": "hub", "location": hub.repo_id, "revision": hub.head}
        plan = make_plan_of(folder, committed + 1, samples_per_shard, source, last)
        pretend_committed(folder, plan, range(committed))
        return run_measured(folder, hub.url)
