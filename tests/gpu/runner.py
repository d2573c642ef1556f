"""Runs stages one after the other within a time limit, and loses nothing of what they found.

Whatever happens to a stage, or to all of this, what was found before is in the result files: they
are rewritten after every stage, and whenever a stage has saved another part of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Every process of a stage has this in its environment, wherever it has moved itself to.
MARK = "CTGPU_CHECK_STAGE"

_POLL_S = 0.5
_LOG_CHARACTERS = 6000
# For the last stage's end and the last writing.
_RESERVE_S = 3.0

Found = dict[str, Any]

# How a stage ends without which others are not tried.  One that was slow, or killed, may have done
# what they need.
_NOT_WORKING = ("failed", "skipped", "not here", "not supported here")


def read_json(path: Path) -> Found | None:
    """What a stage has saved so far; None where there is nothing, or only half of it yet."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


@dataclass(frozen=True)
class Stage:
    """One thing to find out.

    Attributes
    ----------
    name : str
    command : sequence
        What to run; empty where `absent` says why it cannot be.
    most_s : float
        The most time it gets; and its share, relative to the others', of the time that is left.
    needs : tuple of str
        Stages after whose failure it is not tried.
    saved : Path, optional
        Where it saves what it finds, as often as it likes.
    read : callable
        Reads that file.
    says : callable
        What it found, in a few words.
    tells : Path, optional
        Where its tool writes what it has to tell, if not into its output.
    unsupported : callable
        Of its exit status and all that it told: why a failure is the machine's, which does not
        support this; empty where it may be anything else.
    doubt : callable
        Of all that it told: why it has not passed, whatever its exit status; empty where it has.
    idle : callable
        Of what it found: why there was nothing to do here; empty where it did something.
    absent : str
        Why it cannot be run here; empty where it can.
    """

    name: str
    command: Sequence[Any]
    most_s: float
    needs: tuple[str, ...] = ()
    saved: Path | None = None
    read: Callable[[Path], Found | None] = read_json
    says: Callable[[Found], str] = lambda found: ""
    tells: Path | None = None
    unsupported: Callable[[int, str], str] = lambda status, told: ""
    doubt: Callable[[str], str] = lambda told: ""
    idle: Callable[[Found], str] = lambda found: ""
    absent: str = ""


@dataclass
class Runner:
    """Runs stages, each in a process group of its own that does not outlive it.

    Attributes
    ----------
    limit_s : float
        For all stages together.
    outputs : sequence of Path
        Files that the result is written to.
    work : Path
        Folder for logs, and the stages' working folder.
    environment : mapping
        Of the stages.
    result : dict
        What was found so far, JSON-ready.
    """

    limit_s: float
    outputs: Sequence[Path]
    work: Path
    environment: Mapping[str, str]
    result: Found = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._deadline = time.monotonic() + self.limit_s
        self.result |= {"limit_s": self.limit_s, "finished": False, "stages": {}}

    def run(self, stages: Sequence[Stage]) -> None:
        """Run them all, also after one failed; each may take its share of the time left."""
        for n, stage in enumerate(stages):
            print(f"== {stage.name}", flush=True)
            shares = sum(later.most_s for later in stages[n:] if not self._obstacle(later))
            left = max(0.0, self._deadline - _RESERVE_S - time.monotonic())
            limit = min(stage.most_s, left * stage.most_s / shares) if shares else 0.0
            self._run(stage, limit)
            self.write()
        self.result["finished"] = True
        self.write()

    def write(self) -> None:
        """Replace every result file; one that cannot be written does not keep the others."""
        text = json.dumps(self.result, indent=2) + "\n"
        for path in self.outputs:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                draft = path.with_name(f".{path.name}.part")
                draft.write_text(text, encoding="utf-8")
                draft.replace(path)
            except OSError as error:
                print(f"{path} cannot be written: {error}", file=sys.stderr)

    @property
    def statuses(self) -> dict[str, str]:
        """How each stage ended."""
        return {name: outcome["status"] for name, outcome in self.result["stages"].items()}

    def _obstacle(self, stage: Stage) -> str:
        """Why a stage is not tried; empty where it is."""
        failed = [name for name in stage.needs if self.statuses.get(name) in _NOT_WORKING]
        return stage.absent or (f"needs {', '.join(failed)}" if failed else "")

    def _run(self, stage: Stage, limit_s: float) -> None:
        outcome: Found = {"status": "skipped", "seconds": 0.0, "limit_s": round(limit_s, 1)}
        self.result["stages"][stage.name] = outcome
        if obstacle := self._obstacle(stage):
            outcome |= {"status": "not here" if stage.absent else "skipped", "why": obstacle}
            return
        if limit_s < 1.0:
            outcome["why"] = "no time was left"
            return
        log = self.work / f"{stage.name.replace(' ', '-')}.log"
        mark = f"{stage.name}-{uuid.uuid4().hex}"
        begin = time.monotonic()
        outcome["status"] = "running"
        status = 0
        try:
            with open(log, "wb") as output:
                process = subprocess.Popen(
                    [str(word) for word in stage.command],
                    cwd=self.work,
                    env={**self.environment, MARK: mark},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    process_group=0,
                )
            try:
                in_time = self._watch(process, stage, begin + limit_s)
            finally:
                kill(process, mark)
            status = process.returncode
            outcome["status"] = "passed" if status == 0 else "failed"
            if not in_time:
                outcome |= {"status": "timed out", "why": f"stopped after {limit_s:.0f} s"}
            elif status < 0:
                outcome |= {"status": "killed", "why": f"by {signal.Signals(-status).name}"}
        except OSError as error:
            outcome |= {"status": "failed", "why": f"cannot be started: {error}"}
        except BaseException:
            outcome |= {"status": "stopped", "why": "this check was ended from outside"}
            raise
        finally:
            outcome["seconds"] = round(time.monotonic() - begin, 1)
            self._conclude(stage, outcome, status, log)
            self.write()

    def _watch(self, process: subprocess.Popen[bytes], stage: Stage, deadline: float) -> bool:
        """Wait for its end, and pass on what it saves; False where the deadline comes first."""
        seen: Found | None = None
        while time.monotonic() < deadline:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(min(_POLL_S, max(0.0, deadline - time.monotonic())))
                return True
            found = stage.read(stage.saved) if stage.saved is not None else None
            if found is not None and found != seen:
                seen = self.result["stages"][stage.name]["found"] = found
                self.write()
        return process.poll() is not None

    def _conclude(self, stage: Stage, outcome: Found, status: int, log: Path) -> None:
        if stage.saved is not None and (found := stage.read(stage.saved)) is not None:
            outcome["found"] = found
        outcome["says"] = stage.says(outcome["found"]) if "found" in outcome else ""
        told = [_text(path) for path in (log, stage.tells) if path is not None]
        text = "\n".join(told)
        if outcome["status"] == "passed":
            if why := stage.doubt(text):
                outcome |= {"status": "failed", "why": why}
            elif stage.saved is not None and "found" not in outcome:
                outcome |= {"status": "failed", "why": "it ended well and found nothing"}
            elif "found" in outcome and (why := stage.idle(outcome["found"])):
                outcome |= {"status": "not here", "why": why}
        if outcome["status"] == "failed" and (why := stage.unsupported(status, text)):
            outcome |= {"status": "not supported here", "why": why}
        if outcome["status"] != "passed":
            outcome["log"] = "\n".join(part[-_LOG_CHARACTERS:] for part in told if part)
            print(outcome["log"].rstrip(), flush=True)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def kill(process: subprocess.Popen[bytes], mark: str) -> None:
    """End a stage's process group, and whatever of it has moved to another group or session.

    A sanitizer's child, left alone, would hold the GPU.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for _ in range(10):  # one may be born while the others are ended
        left = list(_marked(mark))
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not left:
            break
        time.sleep(0.05)
    process.wait()


def _marked(mark: str) -> Iterable[int]:
    """Processes that carry the mark in their environment; none where there is no /proc."""
    wanted = f"{MARK}={mark}".encode()
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if wanted in entry.read_bytes().split(b"\0"):
                yield int(entry.parent.name)


def table(result: Mapping[str, Any]) -> str:
    """The stages in one compact table."""
    rows = [("stage", "status", "s", "of", "")]
    rows += [
        (
            name,
            outcome["status"],
            f"{outcome['seconds']:.0f}",
            f"{outcome['limit_s']:.0f}",
            "; ".join(filter(None, (outcome.get("why", ""), outcome.get("says", "")))),
        )
        for name, outcome in result["stages"].items()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]:>{widths[2]}}  "
        f"{row[3]:>{widths[3]}}  {row[4]}".rstrip()
        for row in rows
    )
