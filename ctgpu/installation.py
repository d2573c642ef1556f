"""How this package was installed: its version, and the command that adds what is missing."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

_NAME = "ctgpu"

try:
    __version__ = importlib.metadata.version(_NAME)
except importlib.metadata.PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"


def install_command(extra: str) -> str:
    """The command that adds an extra to this installation, wherever it came from.

    The name alone finds the package on an index only, not the checkout that it was installed from.

    Parameters
    ----------
    extra : str
        Such as ``"torch"``.

    Returns
    -------
    str
        Such as ``pip install '.[torch]'``, or with the checkout's path from another folder.
    """
    origin = _origin()
    path = Path(url2pathname(urlsplit(origin.get("url", "")).path))
    if "dir_info" in origin and path.is_dir():
        place = "." if _is_working_folder(path) else str(path)
        option = "-e " if origin["dir_info"].get("editable") else ""
        return f"pip install {option}{shlex.quote(f'{place}[{extra}]')}"
    if "vcs_info" in origin:
        vcs = origin["vcs_info"]
        url = f"{vcs['vcs']}+{origin['url']}@{vcs['commit_id']}"
        return f"pip install {shlex.quote(f'{_NAME}[{extra}] @ {url}')}"
    if "archive_info" in origin:
        return f"pip install {shlex.quote(f'{_NAME}[{extra}] @ ' + origin['url'])}"
    return f"pip install '{_NAME}[{extra}]'"


def _origin() -> dict[str, Any]:
    """What the installer has recorded (``direct_url.json``); empty where that was an index."""
    try:
        text = importlib.metadata.distribution(_NAME).read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        # A checkout that was never installed.
        return {"url": Path(__file__).resolve().parent.parent.as_uri(), "dir_info": {}}
    try:
        origin = json.loads(text) if text else {}
    except ValueError:
        return {}
    return origin if isinstance(origin, dict) else {}


def _is_working_folder(path: Path) -> bool:
    try:
        return os.path.samefile(path, ".")
    except OSError:  # it is gone
        return False
