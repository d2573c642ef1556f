"""The Ray cluster of a build: the one that was named or runs here, or else a new one."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from ctgpu.errors import EnvironmentFailure, UsageError, reason_of
from ctgpu.installation import install_command

log = logging.getLogger(__name__)

_CONNECT_S = 10.0
# Joining takes two seconds; where no Ray answers, Ray itself would try for many minutes.
_JOIN_S = 30.0
_PROBE = "import sys, ray; ray.init(*sys.argv[1:], log_to_driver=False)"
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):([0-9]{1,5})")
_NO_CLUSTER = (
    "the Ray cluster at {} cannot be reached ({}): start one with `ray start --head`, and join it "
    "with `ray start --address HOST:PORT` on every other node"
)
_NO_START = (
    "Ray cannot start a cluster on this machine ({}): mend that, name a running one with "
    "--ray HOST:PORT, or build without --ray"
)
_STARTED = "Ray: no cluster was running, so one was started on this machine"
# Paths and records are all that goes through it; Ray would reserve a third of the memory.
_OBJECT_STORE_BYTES = 100 << 20
_OWN_CLUSTER = {"object_store_memory": _OBJECT_STORE_BYTES, "include_dashboard": False}


def import_ray() -> ModuleType:
    """Ray.

    Raises
    ------
    EnvironmentFailure
        If it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise EnvironmentFailure(
            f"--ray needs Ray: install it on every node with `{install_command('ray')}`"
        ) from error
    module: ModuleType = ray
    return module


def connect(ray: ModuleType, address: str) -> None:
    """Join a cluster, or start one on this machine.

    Parameters
    ----------
    ray : module
        Ray, not connected.
    address : str
        ``HOST:PORT`` to join; ``"local"`` to start one; ``"auto"`` for what ``RAY_ADDRESS`` says,
        else the cluster that ``ray start`` has made on this machine, else a new one.

    Raises
    ------
    UsageError
        If it is no address.
    EnvironmentFailure
        If the cluster cannot be reached, or none can be started.
    """
    option = "--ray"
    if address == "auto" and (stated := os.environ.get("RAY_ADDRESS")):
        option, address = "RAY_ADDRESS", stated
    if address == "auto":
        _join_or_start(ray)
    elif address == "local":
        _start(ray)
    else:
        _require_listener(address, option)
        if (reason := _why_not(address)) is not None:
            raise EnvironmentFailure(_NO_CLUSTER.format(address, reason))
        _join(ray, address)


def _join_or_start(ray: ModuleType) -> None:
    """As ``ray.init()`` does, but for a cluster that it knows of and that is gone."""
    with _in_words(ray, _NO_START):
        try:
            _init(ray, None, **_OWN_CLUSTER)
        except ConnectionError:
            _start(ray)  # as RAY_ADDRESS=auto forbids Ray to
            return
        except ValueError:
            # Options for a new cluster are refused where one runs; nothing has happened yet.
            if (reason := _why_not(None)) is None:
                _join(ray, None)
                return
            log.warning("Ray: the cluster last started on this machine is gone (%s)", reason)
            _start(ray)
            return
    log.info(_STARTED)


def _join(ray: ModuleType, address: str | None) -> None:
    with _in_words(ray, _NO_CLUSTER.format(address or "this machine", "{}")):
        _init(ray, address)


def _start(ray: ModuleType) -> None:
    with _in_words(ray, _NO_START):
        _init(ray, "local", **_OWN_CLUSTER)
    log.info(_STARTED)


def _init(ray: ModuleType, address: str | None, **options: Any) -> None:
    with _signals_deferred():
        ray.init(
            address,
            log_to_driver=log.isEnabledFor(logging.DEBUG),
            logging_level=logging.WARNING,
            **options,
        )


def _require_listener(address: str, option: str) -> None:
    found = _ADDRESS.fullmatch(address)
    if found is None or not 0 < int(found[2]) < 1 << 16:
        raise UsageError(
            f"{option} is {address!r}; it takes HOST:PORT of a cluster that this machine is a "
            "node of, since the output folder is shared with it"
        )
    try:
        socket.create_connection((found[1].strip("[]"), int(found[2])), _CONNECT_S).close()
    except (OSError, UnicodeError) as error:  # the latter where it can be no name of a host
        reason = reason_of(error) if isinstance(error, OSError) else str(error)
        raise EnvironmentFailure(
            _NO_CLUSTER.format(address, f"nothing answers there: {reason}")
        ) from error


def _why_not(address: str | None) -> str | None:
    """Why a cluster cannot be joined, tried in a process that can be ended; None where it can."""
    command = [sys.executable, "-P", "-c", _PROBE, *([address] if address is not None else [])]
    try:
        tried = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=_JOIN_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no Ray answers there within {_JOIN_S:.0f} seconds"
    if tried.returncode == 0:
        return None
    if "AuthenticationError" in tried.stderr:
        return "it wants a token: set RAY_AUTH_MODE=token where ~/.ray/auth_token holds it"
    return (tried.stderr.strip().splitlines() or [f"exit status {tried.returncode}"])[-1]


@contextmanager
def _in_words(ray: ModuleType, sentence: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        raise EnvironmentFailure(sentence.format(first_line(error))) from error


@contextmanager
def _signals_deferred() -> Iterator[None]:
    """Starting a cluster makes SIGTERM Ray's, and must not be broken off half way."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    came: list[int] = []
    handlers = {n: signal.signal(n, lambda n, _: came.append(n)) for n in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
