"""How the package was installed, and the command that adds what is missing."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

from ctgpu.installation import install_command

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Installs the package, as an installer records it."""

    def install(direct_url: dict[str, Any] | str | None) -> None:
        text = direct_url if isinstance(direct_url, str | None) else json.dumps(direct_url)

        class Distribution:
            def read_text(self, name: str) -> str | None:
                return {"direct_url.json": text}.get(name)

        monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Distribution())

    return install


@pytest.mark.parametrize("editable", [True, False])
def test_a_checkout_is_named_by_its_place(
    tmp_path: Path, installed: Any, monkeypatch: pytest.MonkeyPatch, editable: bool
) -> None:
    checkout = tmp_path / "the checkout's"
    checkout.mkdir()
    installed({"url": checkout.as_uri(), "dir_info": {"editable": True} if editable else {}})
    option = ["-e"] * editable
    monkeypatch.chdir(tmp_path)
    words = shlex.split(install_command("preview"))
    assert words == ["pip", "install", *option, f"{checkout}[preview]"]
    monkeypatch.chdir(checkout)
    assert install_command("preview").endswith(" '.[preview]'")
    assert shlex.split(install_command("preview")) == ["pip", "install", *option, ".[preview]"]


def test_an_index_knows_the_name(installed: Any) -> None:
    installed(None)
    assert install_command("torch") == "pip install 'ctgpu[torch]'"


@pytest.mark.parametrize("text", ["[", "[1]", '{"url": "file:///none", "dir_info": {}}'])
def test_what_says_nothing_leaves_the_name(installed: Any, text: str) -> None:
    installed(text)
    assert install_command("torch") == "pip install 'ctgpu[torch]'"


@pytest.mark.parametrize(
    ("origin", "wanted"),
    [
        (
            {
                "url": "https://example.org/ctgpu.git",
                "vcs_info": {"vcs": "git", "commit_id": "abc123"},
            },
            "ctgpu[ray] @ git+https://example.org/ctgpu.git@abc123",
        ),
        (
            {"url": "file:///wheels/ctgpu-1-py3-none-any.whl", "archive_info": {}},
            "ctgpu[ray] @ file:///wheels/ctgpu-1-py3-none-any.whl",
        ),
    ],
)
def test_a_repository_or_a_wheel_is_named_by_its_address(
    installed: Any, origin: dict[str, Any], wanted: str
) -> None:
    installed(origin)
    assert shlex.split(install_command("ray")) == ["pip", "install", wanted]


def test_a_checkout_that_was_never_installed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", nothing)
    monkeypatch.chdir("/")
    (place,) = shlex.split(install_command("dali"))[2:]
    assert (Path(place.removesuffix("[dali]")) / "pyproject.toml").exists()


@pytest.mark.slow
def test_what_every_installation_needs_is_imported_by_the_package() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    needed = {
        re.match(r"[\w-]+", need)[0].replace("-", "_")  # type: ignore[index]
        for need in project["project"]["dependencies"]
    }
    imported: set[str] = set()
    for path in (REPOSITORY / "ctgpu").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    # What the native module calls, which is no Python.
    assert needed - imported == {"nanobind_backend"}
