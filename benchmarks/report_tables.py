"""The tables of :mod:`report`, as lines of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from common import in_words, machine_line, three_digits

Result = Mapping[str, Any]


# ---- the whole job, one volume ------------------------------------------------------------------


def build_table(build: Result) -> list[str]:
    rows = []
    for name, facts in build["formats"].items():
        contenders = facts["contenders"]
        one, per_core = contenders["old, one thread"], contenders["old, one process per core"]
        rows.append(
            [
                f"`{name}`",
                _median(one["rate"]),
                _median(per_core["rate"]),
                f"**{_median(contenders['ctgpu']['rate'])}**",
                f"**{one['ctgpu_over_this']:.1f} ×** and {per_core['ctgpu_over_this']:.1f} ×",
            ]
        )
    header = ("Files", "old way, one thread", "old way, one process per core", "ctgpu", "ratios")
    return _table(header, rows)


def volume_table(one: Result, contenders: Mapping[str, Any]) -> list[str]:
    return _table(
        ("Contender", "median", "GB/s", "takes, of ctgpu's time"),
        (
            [
                f"**{name}**" if name == one["ctgpu"] else name,
                _median(facts["time"]),
                three_digits(facts["gb_per_s"]),
                f"{three_digits(facts['this_over_ctgpu'])} ×",
            ]
            for name, facts in contenders.items()
        ),
    )


def floor_lines(one: Result) -> list[str]:
    whole, threads = one["roofline"]["uncropped"], one["threads"]
    most = max(threads, key=int)
    return [
        f"Where all of the source is needed ({whole['bytes_moved'] / 1e6:.0f} MB moved) ctgpu "
        f"takes {whole['ctgpu_over_floor']:.2f} × the floor (one read and one streaming write, "
        f"{whole['contenders']['floor']['gb_per_s']:.0f} GB/s) and "
        f"{whole['ctgpu_over_copy']:.2f} × a `memcpy` of as many bytes. {most} threads are "
        f"{threads[most]['one_thread_over_this']:.2f} × as fast as one."
    ]


def first_call_table(one: Result) -> list[str]:
    """Fresh memory beside memory used again; empty for a result of before it was measured."""
    if "first_call" not in one:
        return []
    rows = [
        [
            f"{', '.join(layout)}, {name}",
            _median(facts["time"]),
            f"{facts['this_over_used_again']:.2f} ×",
        ]
        for layout, contenders in one["first_call"].items()
        for name, facts in contenders.items()
    ]
    return _table(
        ("Output and memory", "median", "takes, of the time with memory used again"), rows
    )


# ---- loading ------------------------------------------------------------------------------------


def step_table(name: str, table: Mapping[str, Any]) -> list[str]:
    """One of the guide's per-step tables, in milliseconds."""
    guide, old, ours = (
        table["old_guide_ms"],
        table["contenders"]["old way"],
        table["contenders"]["ctgpu"],
    )
    timed = [n for n, value in old.items() if isinstance(value, dict) and n != "cpu_per_sample"]
    last = [n for n in ("GPU operations", *table["simulated"], "total") if n in {*guide, *timed}]
    if table["simulated"]:
        last.remove("total")
    own = [n for n in guide if n not in (*last, "total")]
    further = [n for n in timed if n not in (*own, *last)]
    rows = []
    for step in (*own, *further, *last):
        stated = guide["total"] if step.startswith("total") else guide.get(step)
        missing = "not measured" if step in table["not_measured"] else "in the fused pass"
        rows.append(
            [
                f"*{step}*" if step in table["simulated"] else step,
                "" if stated is None else f"{stated:g}",
                *(_ms(way[step]) if step in way else missing for way in (old, ours)),
            ]
        )
    ratio = old["ctgpu_loading_over_this"]
    lines = _table((f"{name}, ms", "old guide", "old way here", "ctgpu here"), rows)
    return [*lines, "", f"All before the GPU: ctgpu is {ratio:.3g} × as fast as the old way."]


def _ms(quantity: Mapping[str, Any]) -> str:
    value = quantity["median"] * 1e3
    return f"{value:,.0f}" if value >= 100 else three_digits(value)


def summary_table(loading: Result) -> list[str]:
    rows = []
    for quantity, row in loading["steps"]["summary"].items():
        if "change" in row:
            ratio = f"{row['change']:+.0%}"
        else:
            ratio = f"{row['ratio']:.3g} ×" if "ratio" in row else "not measured"
        rows.append(
            [
                quantity + (" (simulated consumer)" if row.get("simulated") else ""),
                *(_in_unit(row[way], row.get("unit")) for way in ("old way", "ctgpu")),
                ratio,
                row.get("old_guide", ""),
            ]
        )
    return _table(
        ("Quantity", "old way here", "ctgpu here", "ratio here", "the guide claims"), rows
    )


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
    warm = loading["warm"]
    lines = _table(
        ("Reader, warm", "rate", "CPU time a sample", "ctgpu's rate is"),
        (
            [
                name,
                _median(facts["rate"]),
                _median(facts["cpu_per_sample"]),
                f"{three_digits(facts['ctgpu_over_this'])} ×",
            ]
            for name, facts in warm["contenders"].items()
        ),
    )
    return lines + [f"\nNot run: {name} ({why})." for name, why in warm["not_run"].items()]


def thread_table(loading: Result) -> list[str]:
    threads = loading["threads"]
    names = list(dict.fromkeys(name for facts in threads.values() for name in facts["contenders"]))
    return _table(
        ("Samples/s, by threads or worker processes", *threads),
        (
            [
                name,
                *(
                    three_digits(facts["contenders"][name]["rate"]["median"])
                    if name in facts["contenders"]
                    else "not run"
                    for facts in threads.values()
                ),
            ]
            for name in names
        ),
    )


def cold_lines(loading: Result) -> list[str]:
    cold = loading["cold"]
    rates = ", ".join(f"{name} {_median(f['rate'])}" for name, f in cold["contenders"].items())
    return [f"Cold files ({cold['eviction']}): {rates}."]


# ---- several processes, survival ----------------------------------------------------------------


def distribution_lines(distribute: Result) -> list[str]:
    ways = distribute["bytes"]["ways"]
    differ = sum(len(facts["files_that_differ"]) for facts in ways.values())
    most = max(distribute["scaling"], key=int)
    scaled, cost = distribute["scaling"][most], distribute["overhead"]["ray_per_shard"]
    return [
        f"**Ray and SLURM**: {len(ways)} builds of {distribute['bytes']['samples']} scans by "
        f"several processes, {differ} files that differ from those of one. A Ray task costs "
        f"{_median(cost)} beside its shard; {most} workers with a simulated device stage made "
        f"{scaled['shards']} shards at {scaled['share_of_linear']:.0%} of {most} times one "
        "worker's rate.",
        "",
        *_table(
            ("Built by", "files compared with one process", "differ", "time, once"),
            (
                [
                    name,
                    str(facts["files"]),
                    str(len(facts["files_that_differ"])),
                    _median(facts["time"]),
                ]
                for name, facts in ways.items()
            ),
        ),
    ]


def scaling_table(distribute: Result) -> list[str]:
    header = ("Workers (simulated device)", "shards", "rate", "ideal", "of ideal", "× one worker")
    return _table(
        header,
        (
            [
                workers,
                str(facts["shards"]),
                _median(facts["rate"]),
                in_words(facts["ideal_shards_per_s"], "shards/s"),
                f"{facts['share_of_ideal']:.0%}",
                f"{facts['this_over_one_worker']:.1f}",
            ]
            for workers, facts in distribute["scaling"].items()
        ),
    )


def survival_table(reliability: Result) -> list[str]:
    return _table(
        ("Tried", "times", "went wrong"),
        (
            [
                facts["tried_means"],
                f"{facts['tried']:,}",
                f"{facts['wrong']} {facts['wrong_means']}",
            ]
            for facts in reliability["verdict"].values()
        ),
    )


# ---- the projection -----------------------------------------------------------------------------


def projection(project: Result, build: Result) -> list[str]:
    """Projected rates by machine and by how large CT-RATE's volumes are taken to be."""
    readings = list(project["costs"])
    cells: dict[str, dict[str, str]] = {}
    for row in project["projections"]:
        bound = "≤ " if row["upper_bound"] else ""
        cells.setdefault(row["machine"]["name"], {})[row["reading"]] = (
            f"{bound}{three_digits(row['samples_per_s'])}/s, {three_digits(row['hours'])} h, "
            f"{row['bottleneck']}"
        )
    header = []
    for reading in readings:
        costs = project["costs"][reading]
        header.append(f"{reading}: {costs['compressed_bytes'] / 1e6:.0f} MB a volume")
    steps = project["old_guide"]["steps"]
    return [
        f"Projected, not measured: {project['volumes']:,} volumes from the stage times of "
        "`build.json`. Each cell: samples per second, hours, and what decides. 12 and 21 TB are "
        "the two sizes stated for the data set.",
        "",
        *_table(
            ("Machine", *header),
            ([name, *(of.get(r, "") for r in readings)] for name, of in cells.items()),
        ),
        "",
        f"A run of the real pipeline in virtual time, its stages simulated, differs by at most "
        f"{project['largest_deviation']:.1%} over {len(project['checks'])} configurations.",
        "",
        "What the old guide's build times would need:",
        "",
        *(f"- {line}" for line in _old_runs(project["old_guide"]["runs"])),
        f"- {_old_way_measured(project, build)}",
        f"- Its {steps['claimed_s_before']:g} → {steps['claimed_s_after']:g} s a step is "
        f"{steps['claimed_ratio']:.1f} ×; its own totals of a step, {steps['total_s_before']:g} → "
        f"{steps['total_s_after']:g} s, are {steps['total_ratio']:.1f} ×. Both cannot be of the "
        "same step.",
        "",
        "Assumptions:",
        "",
        *(f"{number}. {text}" for number, text in enumerate(project["assumptions"], 1)),
    ]


def _old_runs(runs: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    for run in runs:
        needs = run["needs"]
        least, most = run["minutes"]
        yield (
            f"{run['samples']:,} samples in {least:g} to {most:g} minutes on {run['workers']} "
            f"workers, volumes {run['reading']}: {_between(needs['samples_per_s'])} samples/s and "
            f"{_between(needs['disk_gb_per_s'])} GB/s to disk; {run['verdict']}."
        )


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


def _between(ends: Sequence[float]) -> str:
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
        f"**GPU** ({machine_line(result['machine'])}; `benchmarks/run_gpu.py`): the kernel moves "
        f"its bytes at {min(shares):.0%} to {max(shares):.0%} of the device's copy bandwidth "
        f"({kernel['copy']['gb_per_s']:.0f} GB/s) and is "
        f"{result['torch']['contenders']['torch']['this_over_ctgpu']:.1f} × as fast as torch's "
        "steps on the same GPU; with upload and download it makes "
        f"{_median(pipeline['ctgpu']['rate'])}, {pipeline['copies alone']['ctgpu_over_this']:.0%} "
        "of the rate of the copies alone."
    ]


# ---- pieces -----------------------------------------------------------------------------------


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [_row(header), "|---" * len(header) + "|", *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _median(quantity: Mapping[str, Any]) -> str:
    return in_words(quantity["median"], quantity["unit"])
