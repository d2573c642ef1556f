"""What a build shows while it runs, and at its end."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from ctgpu.building.events import (
    Event,
    Listing,
    Planned,
    SampleFailed,
    SampleWritten,
    ShardCommitted,
    ShardDoneElsewhere,
    ShardElsewhere,
    ShardResumed,
)
from ctgpu.cli.terminal import Console
from ctgpu.cli.wrapping import shell_line
from ctgpu.printable import counted

if TYPE_CHECKING:
    from ctgpu.building.report import BuildReport

log = logging.getLogger(__name__)

_LINE_EVERY_S = 10.0
# Columns that leave room for everything beside the bar.
_WIDE = 100
# Failures, or folders, of the summary.
_LISTED = 5


class Display:
    """A watcher that draws a live bar on a terminal and writes log lines elsewhere.

    Parameters
    ----------
    console : Console
        Where to draw; its terminal or not decides which of the two.
    """

    def __init__(self, console: Console) -> None:
        self._live = console.is_interactive  # a dumb terminal can draw no bar
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=max(8, min(40, console.width - 72))),
            _Done(),
            TextColumn("{task.fields[rates]}", markup=False),
            *([TimeElapsedColumn()] if console.width >= _WIDE else []),
            _Remaining(),
            TextColumn("{task.fields[failures]}", markup=False),
            console=console,
            disable=not self._live,
        )
        self._task = self._progress.add_task("listing", total=None, rates="", failures="")
        self._started = self._last_line = time.monotonic()
        self._pending = self._kept = self._others = 0
        self._written = self._failed = self._bytes = 0
        self._elsewhere: list[int] = []
        self._shown: set[str] = set()
        self._listed: Listing | None = None

    def __enter__(self) -> Self:
        try:
            self._progress.start()
        except BaseException:
            self._progress.console.show_cursor(True)  # hidden before its thread is started
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A bar that counted nothing is not left behind.
        self._progress.live.transient = not (self._written or self._failed)
        self._progress.stop()

    @property
    def shown(self) -> Collection[str]:
        """Keys of samples whose failures were shown, and tables that were on a terminal."""
        return self._shown

    def finish(self, report: BuildReport) -> None:
        """Show the rates that the summary states, which count the last commit in."""
        if report.pipeline is not None and report.written:
            self._progress.update(self._task, description="built", rates=rates_of(report))

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case Listing() if event == self._listed:
                pass  # what is planned and then tried is listed twice
            case Listing(source):
                self._listed = event
                self._log(event, "listing %s %s", source["kind"], source["location"])
            case Planned():
                self._planned(event)
            case SampleWritten():
                self._written += 1
                self._bytes += event.stored_bytes
                self._advance()
            case SampleFailed(key, _, path, failure):
                self._failed += 1
                self._shown.add(key)
                log.warning(
                    "%s failed in %s: %s%s",
                    key,
                    failure.stage,
                    failure.message,
                    "" if path in failure.message else f" ({path})",
                    extra={"facts": {"event": "SampleFailed", "key": key, "path": path}},
                )
                self._advance()
            case ShardCommitted(shard, samples, size_bytes):
                made = counted(samples, "sample")
                self._log(event, "shard %06d: %s, %s", shard, made, decimal(size_bytes))
            case ShardResumed(shard, kept_samples):
                self._log(event, "shard %06d: %s kept", shard, counted(kept_samples, "sample"))
                self._kept += kept_samples
                self._progress.update(self._task, advance=kept_samples)
            case ShardElsewhere(shard, holder):
                self._log(event, "shard %06d is being made by %s", shard, holder)
                self._elsewhere.append(shard)
                self._wait()
            case ShardDoneElsewhere(shard, samples):
                self._log(event, "shard %06d was made by another process", shard)
                self._others += samples
                if shard in self._elsewhere:
                    self._elsewhere.remove(shard)
                self._wait()
                self._progress.update(self._task, advance=samples)

    def _planned(self, plan: Planned) -> None:
        self._pending = plan.pending_samples
        self._started = time.monotonic()
        counts = ", ".join(f"{count} {what}" for what, count in plan.counts.items() if count)
        self._log(
            plan,
            "%s, described as %s: %s in %s; to do: %s",
            counts or "plan read",
            plan.data_set,
            counted(plan.samples, "sample"),
            counted(plan.shards, "shard"),
            f"{counted(plan.pending_samples, 'sample')} in {counted(plan.pending_shards, 'shard')}"
            if plan.pending_samples
            else "nothing",
        )
        for table in plan.tables:
            if self._live:  # else the summary may go elsewhere than the log
                self._shown.add(str(table))
            log.info("table: %s", table, extra={"facts": {"event": "Table", **asdict(table)}})
        doing = "building" if plan.pending_samples else "nothing to do"
        self._progress.update(self._task, description=doing, total=plan.pending_samples)

    def _wait(self) -> None:
        """Say what the bar stands still for, unless samples of other shards come in between."""
        waits = f"waiting for shard {self._elsewhere[0]:06d}" if self._elsewhere else "building"
        self._progress.update(self._task, description=waits)

    def _advance(self) -> None:
        done = self._written + self._failed
        seconds = max(time.monotonic() - self._started, 1e-9)
        rates = _rates(self._written, self._bytes, seconds)
        failures = f"{self._failed} failed" if self._failed else ""
        self._progress.update(
            self._task, advance=1, rates=rates, failures=failures, description="building"
        )
        now = time.monotonic()
        if not self._live and now - self._last_line >= _LINE_EVERY_S:
            self._last_line = now
            left = self._pending - self._kept - self._others - done
            eta_s = left * seconds / done
            log.info(
                "%d of %s, %s, eta %.0f s%s",
                self._kept + self._others + done,
                counted(self._pending, "sample"),
                rates,
                eta_s,
                f", {failures}" if failures else "",
                extra={
                    "facts": {
                        "event": "Progress",
                        "done": done,
                        "pending": self._pending,
                        "failed": self._failed,
                        "samples_per_s": round(self._written / seconds, 3),
                        "eta_s": round(eta_s),
                    }
                },
            )

    def _log(self, event: Event, message: str, *args: object) -> None:
        facts = {"event": type(event).__name__, **asdict(event)}
        log.info(message, *args, extra={"facts": facts})


class _Done(MofNCompleteColumn):
    """How many of how many, where there are any."""

    def render(self, task: Task) -> Text:
        return super().render(task) if task.total else Text("")


class _Remaining(TimeRemainingColumn):
    """When it will be done, where that can be said."""

    def render(self, task: Task) -> Text:
        if not task.total or task.time_remaining is None or task.finished:
            return Text("")
        return Text.assemble("eta ", super().render(task))


def stage_table(report: BuildReport) -> Table:
    """Where the time went: busy, waiting, share, and what each stage takes by itself.

    The longest of these is the bottleneck.
    """
    table = Table(title="Where the time went", title_justify="left")
    table.add_column("stage")
    for name in ("threads", "busy s", "waiting s", "busy share", "alone s"):
        table.add_column(name, justify="right")
    table.add_column("bottleneck")
    assert report.pipeline is not None
    for stage in report.pipeline.stages:
        table.add_row(
            stage.name,
            str(stage.threads),
            f"{stage.busy_s:.2f}",
            f"{stage.waiting_s:.2f}",
            f"{stage.utilisation:.0%}",
            f"{stage.alone_s(report.pipeline.samples):.2f}",
            "yes" if stage is report.pipeline.bottleneck else "",
        )
    return table


def rates_of(report: BuildReport) -> str:
    """Samples and bytes a second of a run, as the bar and the summary show them."""
    assert report.pipeline is not None
    return _rates(report.written, report.stored_bytes, max(report.pipeline.wall_s, 1e-9))


def _rates(samples: int, size_bytes: int, seconds: float) -> str:
    rate = size_bytes / seconds / 1e6
    return f"{samples / seconds:.2f} samples/s, {rate:{'.0f' if rate >= 10 else '.2g'}} MB/s"


def show_summary(
    report: BuildReport,
    console: Console,
    again: Sequence[str] = (),
    shown: Collection[str] = (),
) -> None:
    """The end of a build: totals, stage times, failures, a training config, and what comes next.

    Parameters
    ----------
    report : BuildReport
    console : Console
        Where to show it.
    again : sequence of str
        The arguments of ``ctgpu`` that go on with it; by default those of a build.
    shown : collection of str
        What :attr:`Display.shown` says was shown while it ran, which is not shown once more.
    """
    if report.pipeline is not None and report.pipeline.stages and report.written:
        console.print(stage_table(report))
        console.prose(
            f"{counted(report.written, 'sample')} in {report.pipeline.wall_s:.1f} s: "
            f"{rates_of(report)}, {decimal(report.stored_bytes)} written, "
            f"at most {decimal(report.pipeline.peak_reserved_bytes)} in flight"
        )
    for table in report.tables:
        if str(table) not in shown:
            console.prose(f"table: {table}")
    manifest = report.manifest
    console.prose(
        f"{report.folder}: {counted(manifest['total_samples'], 'sample')} in "
        f"{counted(manifest['total_shards'], 'shard')}, shape {tuple(manifest['sample_shape'])} "
        f"{manifest['layout']} {manifest['sample_dtype']}, fingerprint {manifest['fingerprint']}, "
        f"described as {report.data_set}"
    )
    if report.failures:
        failed = counted(len(report.failures), "sample")
        console.prose(f"{failed} failed; see {report.failures_path}")
        _list(
            [
                f"{failure['key']} ({failure['stage']}): {failure['message']}"
                for failure in report.failures
                if failure["key"] not in shown
            ],
            console,
        )
    if report.missing_folders:
        folders = counted(len(report.missing_folders), "folder")
        console.prose(
            f"{folders} of the source could not be looked at when this data set was planned, so "
            "it has no volume of:"
        )
        _list([f"{path}: {why}" for path, why in report.missing_folders.items()], console)
        console.prose(
            "bring back what is missing, then build it into a folder of its own, or all into "
            "another one"
        )
    if manifest["total_samples"]:
        console.print()
        console.print("For a training config:")
        for line in report.training_yaml().splitlines():
            console.print(line, soft_wrap=True)
    console.print()
    console.print("Next:")
    for arguments in _next(report, again):
        console.print(f"  {shell_line(arguments)}", soft_wrap=True)


def _list(lines: Sequence[str], console: Console) -> None:
    """The first of some lines."""
    for line in lines[:_LISTED]:
        console.prose(line, indent="  ")
    if len(lines) > _LISTED:
        console.print(f"  … and {len(lines) - _LISTED} more")


def _next(report: BuildReport, again: Sequence[str]) -> Iterator[Sequence[str]]:
    """The two commands that one would type next."""
    card, folder = report.manifest, str(report.folder)
    again = again or ["build", "--output-dir", folder]
    if report.failures:
        yield [*again, "--retry-failed"]
    elif card["total_samples"] < card["planned_samples"]:
        yield again
    else:
        yield ["inspect", folder]
    yield ["verify", folder]
