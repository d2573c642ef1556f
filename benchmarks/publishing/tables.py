"""The tables of :mod:`report`, as lines of Markdown."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.harness.machine import machine_line
from benchmarks.harness.measuring import in_words, is_measured, median_in_words, three_digits

Result = Mapping[str, Any]


class _InWords(string.Formatter):
    """Measured quantities are their medians, and ``{…:3}`` a number of three digits."""

    def format_field(self, value: Any, spec: str) -> str:
        if is_measured(value):
            return median_in_words(value)
        return three_digits(value) if spec == "3" else str(super().format_field(value, spec))


said = _InWords().format


def table(header: Sequence[str], row: str, facts: Iterable[Result]) -> list[str]:
    """A line by :func:`said` for each of these; cells of `row` are apart by bars."""
    lines = [said(row, **of) for of in facts]
    cells = [" | ".join(part.strip() for part in line.split("|")) for line in lines]
    return [f"| {' | '.join(header)} |", "|---" * len(header) + "|", *(f"| {c} |" for c in cells)]


def named(facts: Mapping[str, Result], key: str = "name") -> Iterable[dict[str, Any]]:
    """Facts by name, with their names among them."""
    return ({key: name, **of} for name, of in facts.items())


# ---- the whole job, one volume ------------------------------------------------------------------


def build_table(build: Result) -> list[str]:
    header = ("Files", "old way, one thread", "old way, one process per core", "ctgpu", "ratios")
    ratios = "**{old[ctgpu_over_this]:.1f} ×** and {all[ctgpu_over_this]:.1f} ×"
    facts = (
        {
            "name": name,
            "old": of["contenders"]["old, one thread"],
            "all": of["contenders"]["old, one process per core"],
            "ours": of["contenders"]["ctgpu"],
        }
        for name, of in build["formats"].items()
    )
    return table(header, "`{name}`|{old[rate]}|{all[rate]}|**{ours[rate]}**|" + ratios, facts)


def volume_table(one: Result, contenders: Mapping[str, Any]) -> list[str]:
    header = ("Contender", "median", "GB/s", "takes, of ctgpu's time")
    shown = {f"**{n}**" if n == one["ctgpu"] else n: of for n, of in contenders.items()}
    return table(header, "{name}|{time}|{gb_per_s:3}|{this_over_ctgpu:3} ×", named(shown))


def floor_lines(one: Result) -> list[str]:
    most = max(one["threads"], key=int)
    return [
        said(
            "Where all of the source is needed ({mb:.0f} MB moved) ctgpu takes "
            "{ctgpu_over_floor:.2f} × the floor (one read and one streaming write, "
            "{contenders[floor][gb_per_s]:.0f} GB/s) and {ctgpu_over_copy:.2f} × a `memcpy` of as "
            "many bytes. {most} threads are {threads[one_thread_over_this]:.2f} × as fast as one.",
            mb=one["roofline"]["uncropped"]["bytes_moved"] / 1e6,
            most=most,
            threads=one["threads"][most],
            **one["roofline"]["uncropped"],
        )
    ]


def first_call_table(one: Result) -> list[str]:
    """Fresh memory beside memory used again; empty for a result of before it was measured."""
    if "first_call" not in one:
        return []
    facts = {
        f"{', '.join(layout)}, {name}": of
        for layout, contenders in one["first_call"].items()
        for name, of in contenders.items()
    }
    header = ("Output and memory", "median", "takes, of the time with memory used again")
    return table(header, "{name}|{time}|{this_over_used_again:.2f} ×", named(facts))


# ---- loading ------------------------------------------------------------------------------------


def step_table(name: str, steps: Mapping[str, Any]) -> list[str]:
    """One of the guide's per-step tables, in milliseconds."""
    guide, old, ours = (
        steps["old_guide_ms"],
        steps["contenders"]["old way"],
        steps["contenders"]["ctgpu"],
    )
    timed = [n for n, value in old.items() if isinstance(value, dict) and n != "cpu_per_sample"]
    last = [n for n in ("GPU operations", *steps["simulated"], "total") if n in {*guide, *timed}]
    if steps["simulated"]:
        last.remove("total")
    own = [n for n in guide if n not in (*last, "total")]
    further = [n for n in timed if n not in (*own, *last)]
    rows = []
    for step in (*own, *further, *last):
        stated = guide["total"] if step.startswith("total") else guide.get(step)
        missing = "not measured" if step in steps["not_measured"] else "in the fused pass"
        rows.append(
            {
                "step": f"*{step}*" if step in steps["simulated"] else step,
                "guide": "" if stated is None else f"{stated:g}",
                "old": _ms(old[step]) if step in old else missing,
                "ours": _ms(ours[step]) if step in ours else missing,
            }
        )
    lines = table(
        (f"{name}, ms", "old guide", "old way here", "ctgpu here"),
        "{step}|{guide}|{old}|{ours}",
        rows,
    )
    ratio = old["ctgpu_loading_over_this"]
    return [*lines, "", f"All before the GPU: ctgpu is {ratio:.3g} × as fast as the old way."]


def _ms(quantity: Mapping[str, Any]) -> str:
    value = quantity["median"] * 1e3
    return f"{value:,.0f}" if value >= 100 else three_digits(value)


def summary_table(loading: Result) -> list[str]:
    rows = []
    for quantity, row in loading["steps"]["summary"].items():
        ratio = f"{row['ratio']:.3g} ×" if "ratio" in row else "not measured"
        rows.append(
            {
                "what": quantity + (" (simulated consumer)" if row.get("simulated") else ""),
                "old": _in_unit(row["old way"], row.get("unit")),
                "ours": _in_unit(row["ctgpu"], row.get("unit")),
                "ratio": f"{row['change']:+.0%}" if "change" in row else ratio,
                "guide": row.get("old_guide", ""),
            }
        )
    header = ("Quantity", "old way here", "ctgpu here", "ratio here", "the guide claims")
    return table(header, "{what}|{old}|{ours}|{ratio}|{guide}", rows)


def _in_unit(value: Any, unit: str | None) -> str:
    if unit is None or unit == "threads":
        return str(value)
    return f"{value:.1%}" if unit == "s/s" else in_words(value, unit)


def loading_note(loading: Result) -> list[str]:
    consumer = loading["consumer"]
    if not consumer["simulated"]:
        return [f"The consumer is {consumer['name']}."]
    return [
        "The old way loads and preprocesses raw samples in the training process; ctgpu's loader "
        f"reads shards ahead. There being no GPU, the consumer is {consumer['name']}."
    ]


def reader_table(loading: Result) -> list[str]:
    header = ("Reader, warm", "rate", "CPU time a sample", "ctgpu's rate is")
    row = "{name}|{rate}|{cpu_per_sample}|{ctgpu_over_this:3} ×"
    warm = loading["warm"]
    not_run = [f"\nNot run: {name} ({why})." for name, why in warm["not_run"].items()]
    return table(header, row, named(warm["contenders"])) + not_run


def thread_table(loading: Result) -> list[str]:
    threads = {count: of["contenders"] for count, of in loading["threads"].items()}
    names = dict.fromkeys(name for contenders in threads.values() for name in contenders)
    header = ("Samples/s, by threads or worker processes", *threads)
    rates = {
        name: " | ".join(
            three_digits(of[name]["rate"]["median"]) if name in of else "not run"
            for of in threads.values()
        )
        for name in names
    }
    return table(header, "{name}|{rates}", ({"name": n, "rates": r} for n, r in rates.items()))


def cold_lines(loading: Result) -> list[str]:
    cold = loading["cold"]
    rates = ", ".join(said("{name} {rate}", **of) for of in named(cold["contenders"]))
    return [f"Cold files ({cold['eviction']}): {rates}."]


# ---- several processes, survival ----------------------------------------------------------------


def distribution_lines(distribute: Result) -> list[str]:
    ways = {
        name: {**of, "differ": len(of["files_that_differ"])}
        for name, of in distribute["bytes"]["ways"].items()
    }
    most = max(distribute["scaling"], key=int)
    told = said(
        "**Ray and SLURM**: {ways} builds of {samples} scans by several processes, {differ} files "
        "that differ from those of one. A Ray task costs {cost} beside its shard; {most} workers "
        "with a simulated device stage made {shards} shards at {share_of_linear:.0%} of {most} "
        "times one worker's rate.",
        ways=len(ways),
        samples=distribute["bytes"]["samples"],
        differ=sum(of["differ"] for of in ways.values()),
        cost=distribute["overhead"]["ray_per_shard"],
        most=most,
        **distribute["scaling"][most],
    )
    header = ("Built by", "files compared with one process", "differ", "time, once")
    return [told, "", *table(header, "{name}|{files}|{differ}|{time}", named(ways))]


def scaling_table(distribute: Result) -> list[str]:
    header = ("Workers (simulated device)", "shards", "rate", "ideal", "of ideal", "× one worker")
    row = "{name}|{shards}|{rate}|{ideal_shards_per_s:3} shards/s|{share_of_ideal:.0%}|"
    return table(header, row + "{this_over_one_worker:.1f}", named(distribute["scaling"]))


def survival_table(reliability: Result) -> list[str]:
    row = "{tried_means}|{tried:,}|{wrong} {wrong_means}"
    return table(("Tried", "times", "went wrong"), row, reliability["verdict"].values())


# ---- the projection -----------------------------------------------------------------------------


def projection(project: Result, build: Result) -> list[str]:
    """Projected rates by machine and by how large CT-RATE's volumes are taken to be."""
    sizes = {name: of["compressed_bytes"] / 1e6 for name, of in project["costs"].items()}
    header = ("Machine", *(f"{name}: {mb:.0f} MB a volume" for name, mb in sizes.items()))
    cells: dict[str, list[str]] = {}
    for row in project["projections"]:
        bound = "≤ " if row["upper_bound"] else ""
        cell = said("{samples_per_s:3}/s, {hours:3} h, {bottleneck}", **row)
        cells.setdefault(row["machine"]["name"], []).append(bound + cell)
    runs = (
        said(
            "- {samples:,} samples in {minutes[0]:g} to {minutes[1]:g} minutes on {workers} "
            "workers, volumes {reading}: {rates} samples/s and {disk} GB/s to disk; {verdict}.",
            rates=between(run["needs"]["samples_per_s"]),
            disk=between(run["needs"]["disk_gb_per_s"]),
            **run,
        )
        for run in project["old_guide"]["runs"]
    )
    return [
        f"Projected, not measured: {project['volumes']:,} volumes from the stage times of "
        "`build.json`. Each cell: samples per second, hours, and what decides. 12 and 21 TB are "
        "the two sizes stated for the data set.",
        "",
        *table(header, "{row}", ({"row": " | ".join([n, *of])} for n, of in cells.items())),
        "",
        f"A run of the real pipeline in virtual time, its stages simulated, differs by at most "
        f"{project['largest_deviation']:.1%} over {len(project['checks'])} configurations.",
        "",
        "What the old guide's build times would need:",
        "",
        *runs,
        f"- {_old_way_measured(project, build)}",
        said(
            "- Its {claimed_s_before:g} → {claimed_s_after:g} s a step is {claimed_ratio:.1f} ×; "
            "its own totals of a step, {total_s_before:g} → {total_s_after:g} s, are "
            "{total_ratio:.1f} ×. Both cannot be of the same step.",
            **project["old_guide"]["steps"],
        ),
        "",
        "Assumptions:",
        "",
        *(f"{number}. {text}" for number, text in enumerate(project["assumptions"], 1)),
    ]


def _old_way_measured(project: Result, build: Result) -> str:
    """What the old way would take by its own rate here, a core for each worker."""
    facts, run = build["formats"][project["format"]], project["old_guide"]["runs"][0]
    rate = facts["contenders"]["old, one process per core"]["rate"]["median"] / build["cores"]
    minutes = run["samples"] / (rate * run["workers"]) / 60
    return (
        f"The old way as measured here makes {three_digits(rate)} samples/s on a core, of files of "
        f"{facts['file_bytes'] / 1e6:.0f} MB from a local Hub: {run['workers']} workers with a "
        f"core each would take {minutes:.0f} minutes for {run['samples']:,}."
    )


def between(ends: Sequence[float]) -> str:
    least, most = ends
    return f"{three_digits(least)} to {three_digits(most)}"


# ---- GPU ----------------------------------------------------------------------------------------


def gpu(result: Result | None) -> list[str]:
    if result is None:
        return [
            "No GPU has been measured yet: no figure here is a GPU's, and `make gpu-check` on a "
            "machine with one measures it."
        ]
    kernel, pipeline = result["kernel"], result["pipeline"]["contenders"]
    shares = [case["share_of_copy"] for case in kernel["cases"].values()]
    return [
        said(
            "**GPU** ({machine}; `benchmarks/run_gpu.py`): the kernel moves its bytes at {0:.0%} "
            "to {1:.0%} of the device's copy bandwidth ({copy[gb_per_s]:.0f} GB/s) and is "
            "{torch[this_over_ctgpu]:.1f} × as fast as torch's steps on the same GPU; with upload "
            "and download it makes {ours[rate]}, {alone[ctgpu_over_this]:.0%} of the rate of the "
            "copies alone.",
            min(shares),
            max(shares),
            machine=machine_line(result["machine"]),
            copy=kernel["copy"],
            torch=result["torch"]["contenders"]["torch"],
            ours=pipeline["ctgpu"],
            alone=pipeline["copies alone"],
        )
    ]
