"""Which engines there are, and how ``--device`` chooses one."""

from __future__ import annotations

import logging

from ctgpu.arguments import require_kind
from ctgpu.engines.base import Engine
from ctgpu.errors import DeviceError, UsageError

log = logging.getLogger(__name__)

DEVICE_HELP = "auto, cpu, cuda, cuda:N[,M…] or reference"


def open_engine(device: str = "auto") -> Engine:
    """The engine that `device` names.

    Parameters
    ----------
    device : str
        ``"cpu"``, ``"cuda"`` (every GPU), ``"cuda:0"``, ``"cuda:0,1"``, ``"reference"``, or
        ``"auto"``: CUDA where it works, else the CPU with one log line saying why.

    Raises
    ------
    UsageError
        If no engine has that name.
    DeviceError
        If the engine cannot run here.
    """
    _require_text(device)
    kind, _, numbers = device.partition(":")
    if kind == "cuda":
        from ctgpu.engines.cuda import CudaEngine

        try:
            ordinals = tuple(int(n) for n in numbers.split(",")) if numbers else None
        except ValueError:
            by_uuid = (
                f"; CUDA_VISIBLE_DEVICES={numbers} in the environment makes that one cuda:0"
                if numbers.startswith(("GPU-", "MIG-"))
                else ""
            )
            raise UsageError(f"device is {device!r}; it takes {DEVICE_HELP}{by_uuid}") from None
        return CudaEngine(ordinals)
    if device == "cpu":
        from ctgpu.engines.cpu import CpuEngine

        return CpuEngine()
    if device == "reference":
        from ctgpu.engines.reference import ReferenceEngine

        return ReferenceEngine()
    if device == "auto":
        try:
            return open_engine("cuda")
        except DeviceError as error:
            log.info("using the CPU engine: %s", error)
            return open_engine("cpu")
    raise UsageError(f"device is {device!r}; it takes {DEVICE_HELP}")


def arithmetic_of(device: str | Engine) -> str:
    """The arithmetic of the engine that `device` names, which need not run here.

    Raises
    ------
    UsageError
        If no engine has that name.
    """
    if isinstance(device, Engine):
        return device.arithmetic
    _require_text(device)
    if device == "reference":
        from ctgpu.engines.reference import ReferenceEngine

        return ReferenceEngine.arithmetic
    if device.partition(":")[0] not in ("auto", "cpu", "cuda"):
        raise UsageError(f"device is {device!r}; it takes {DEVICE_HELP}")
    return Engine.arithmetic


def _require_text(device: object) -> None:
    require_kind("device", device, str, f"{DEVICE_HELP}, or an open engine", optional=False)


def available_engines() -> dict[str, str | None]:
    """Every engine by name, with the reason why it cannot run here, or None where it can."""
    reasons: dict[str, str | None] = {}
    for device in ("cpu", "cuda", "reference"):
        try:
            open_engine(device).close()
            reasons[device] = None
        except DeviceError as error:
            reasons[device] = str(error)
    return reasons
