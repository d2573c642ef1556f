"""What the stages of ``check.py`` found, in a few words and by the standard library alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Found = Mapping[str, Any]


def of_facts(facts: Found) -> str:
    """The first GPU in a few words."""
    commit = facts["pack"].get("commit") or "not known"
    if not facts["gpus"]:
        return f"no GPU; commit {commit}"
    gpu = facts["gpus"][0]
    return (
        f"{gpu['name']}, driver {gpu['driver_version']}, PCIe {gpu['pcie.link.gen.max']} × "
        f"{gpu['pcie.link.width.max']}, SM {gpu['clocks.sm']} of {gpu['clocks.max.sm']}; "
        f"commit {commit}"
    )


def of_install(found: Found) -> str:
    """What was installed, in a few words."""
    why = f", as {found['why_compiled']}" if "why_compiled" in found else ""
    why += f"; to compile, there is no {found['missing']} here" if "missing" in found else ""
    unfit = f"; do not fit: {', '.join(found['unfit_wheels'])}" if found["unfit_wheels"] else ""
    return f"{found['ctgpu']}{why}; CPU engine {found['variant'] or 'missing'}{unfit}"


def of_smoke(found: Found) -> str:
    """The verdict in a few words."""
    words = [f"opened in {found['open_s']:.2f} s"]
    for layout, of in found["layouts"].items():
        bits = "same bits" if of["same_bits"] else f"{of['voxels_that_differ']} voxels differ"
        times = f"first {of['first_s'] * 1e3:.0f} ms, second {of['second_s'] * 1e3:.0f}"
        words.append(f"{layout} {bits}, {times}")
    return "; ".join(words)


def of_decoder(found: Found) -> str:
    """The verdict, and how many bytes of voxels are decoded in a second."""
    volumes, speed = found["volumes"], found["speed"]
    differ = [name for name, one in volumes.items() if not one["same_bits"]]
    words = [f"{len(volumes) - len(differ)} of {len(volumes)} volumes have the same bits"]
    words += [f"others: {'; '.join(differ)}"] if differ else []
    for name, of in speed.items():
        rates = [one["voxel_gb_per_s"] for batch, one in of.items() if batch.startswith("batch")]
        damaged = ", and finds damage" if of["damaged"] else ""
        words.append(f"{name} {' and '.join(f'{rate:.0f}' for rate in rates)} GB/s{damaged}")
    return "; ".join(words)


def of_end_to_end(found: Found) -> str:
    """What passed, and what did not, in a few words."""
    failed = [name for name, part in found.items() if not part["passed"]]
    absent = [name for name, part in found.items() if "not_here" in part]
    words = [f"{len(found) - len(failed) - len(absent)} of {len(found)} parts passed"]
    words += [f"failed: {', '.join(failed)}"] if failed else []
    words += [f"not here: {', '.join(absent)}"] if absent else []
    return "; ".join(words)


def of_doctor(found: Found) -> str:
    """The device and its copies."""
    checks = {check["name"]: check for check in found["checks"]}
    return str(checks["cuda:0"]["text"] if "cuda:0" in checks else found["why"])


def of_benchmark(found: Found) -> str:
    """Of each part that was measured, its most telling figure."""
    words = []
    if "kernel" in found:
        shares = [case["share_of_copy"] for case in found["kernel"]["cases"].values()]
        words.append(f"kernel {min(shares):.0%} to {max(shares):.0%} of copy")
    if "torch" in found:
        ratio = found["torch"]["contenders"]["torch"]["this_over_ctgpu"]
        words.append(f"torch takes {ratio:.1f} ×")
    if "pipeline" in found:
        ours = found["pipeline"]["contenders"]["ctgpu"]
        words.append(
            f"{ours['rate']['median']:.1f} samples/s, PCIe busy "
            f"{found['pipeline']['pcie_busy']['median']:.0%}, "
            f"{ours['cpu_per_sample']['median'] * 1e3:.0f} ms of CPU each"
        )
    if "inflate" in found:
        rates = [row["rate"]["median"] for row in found["inflate"]["threads"].values()]
        words.append(f"from .nii.gz up to {max(rates):.1f} samples/s")
    words += [f"{name} failed: {why}" for name, why in found.get("failed", {}).items()]
    words += [f"{name} not here: {why}" for name, why in found.get("not_here", {}).items()]
    return "; ".join(words)


def of_profile(found: Found) -> str:
    """Time and how busy the device was, where the profiler tells."""
    wanted = {
        "gpu__time_duration.sum": "duration",
        "dram__throughput.avg.pct_of_peak_sustained_elapsed": "DRAM",
        "sm__throughput.avg.pct_of_peak_sustained_elapsed": "SM",
        "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy",
    }
    return ", ".join(
        f"{word} {found[name]['value']} {found[name]['unit']}"
        for name, word in wanted.items()
        if name in found
    )


def of_tests(found: Found) -> str:
    """How many tests there were, and which failed."""
    words = [f"{found['tests'] - found['skipped']} ran, {found['skipped']} skipped"]
    words += [f"failed: {', '.join(found['names'])}"] if found["names"] else []
    words += [f"not finished: {', '.join(found['running'])}"] if found["running"] else []
    return "; ".join(words)


def of_idle_tests(found: Found) -> str:
    """Why all tests were skipped; empty where one ran."""
    return "; ".join(found["reasons"]) if found["tests"] == found["skipped"] else ""
