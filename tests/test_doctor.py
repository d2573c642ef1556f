"""``ctgpu doctor``: what it finds, and that it never shows a token."""

from __future__ import annotations

import http.server
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from ctgpu import doctor
from ctgpu.engines import _cupy, cuda
from ctgpu.engines.cpu import CpuEngine
from ctgpu.errors import DeviceError

TOKEN = "hf_a-secret-of-nobody"


class Handler(http.server.BaseHTTPRequestHandler):
    seen: list[tuple[str, str | None]]

    def do_HEAD(self) -> None:
        self.seen.append((self.command, self.headers.get("authorization")))
        self.send_response(403)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str | None]]]:
    Handler.seen = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield Handler.seen
    server.shutdown()
    server.server_close()


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cupy, "driver_cuda_version", lambda: None)
    monkeypatch.setattr(doctor, "driver_cuda_version", lambda: None)


def found(report: doctor.Report) -> dict[str, doctor.Check]:
    return {check.name: check for check in report.checks}


def rendered(report: doctor.Report) -> str:
    text = io.StringIO()
    Console(file=text, width=200).print(report.to_table())
    return text.getvalue()


@pytest.mark.usefixtures("no_driver")
def test_a_machine_without_a_gpu(hub: list[tuple[str, str | None]], tmp_path: Path) -> None:
    report = doctor.diagnose(tmp_path / "not" / "yet")
    checks = found(report)
    assert report.device == "cpu"
    assert report.exit_code == 0
    assert "no NVIDIA driver was found" in report.why
    assert checks["NVIDIA driver"].status == "missing"
    assert checks["CPU engine"].facts["variant"] in checks["CPU engine"].text
    assert checks["inflate"].text in ("libdeflate", "isal")
    assert checks["host copy"].facts["gb_per_s"] > 0
    assert checks["memory"].facts["usable_bytes"] <= checks["memory"].facts["total_bytes"]
    assert checks["disk"].facts["folder"] == str(tmp_path)
    assert checks["Hub token"].facts == {"present": True}
    assert checks["Hub"].facts["reachable"]
    # Reaching the Hub is tried without the token, and the token is shown nowhere.
    assert hub == [("HEAD", None)]
    assert TOKEN not in rendered(report) + json.dumps(report.to_dict())


@pytest.mark.usefixtures("no_driver")
def test_an_explicit_gpu_that_does_not_work(hub: list[object], tmp_path: Path) -> None:
    report = doctor.diagnose(tmp_path, device="cuda")
    assert report.device is None
    assert report.exit_code == 3
    assert "no NVIDIA driver was found" in rendered(report)


@pytest.mark.usefixtures("no_driver", "hub")
def test_no_engine_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(self: CpuEngine) -> None:
        raise DeviceError("the C++ engine was not built")

    monkeypatch.setattr(CpuEngine, "__init__", refuse)
    report = doctor.diagnose(tmp_path)
    assert report.exit_code == 3
    assert found(report)["CPU engine"].status == "failed"


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    check = doctor._endpoint()
    assert check.status == "missing"
    assert "http://127.0.0.1:9 cannot be reached" in check.text
    monkeypatch.setenv("HF_ENDPOINT", "file:///etc/passwd")
    assert doctor._endpoint().status == "failed"


def test_a_driver_without_cupy_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, hub: list[object], tmp_path: Path
) -> None:
    def refuse() -> None:
        raise DeviceError("CuPy is not installed; pip install 'ctgpu[cuda12]'")

    monkeypatch.setattr(doctor, "driver_cuda_version", lambda: 12040)
    monkeypatch.setattr(doctor, "import_cupy", refuse)
    monkeypatch.setattr(cuda, "import_cupy", refuse)
    report = doctor.diagnose(tmp_path)
    assert found(report)["NVIDIA driver"].text.endswith("pip install 'ctgpu[cuda12]'")
    assert found(report)["GPU"].status == "failed"
    assert "'ctgpu[cuda12]'" in rendered(report)  # markup does not swallow it
    assert report.device == "cpu"


@pytest.mark.gpu
def test_a_machine_with_a_gpu(hub: list[object], tmp_path: Path) -> None:
    report = doctor.diagnose(tmp_path)
    assert report.device == cuda.CudaEngine().name
    facts = found(report)["cuda:0"].facts
    assert min(facts[f"{what}_gb_per_s"] for what in ("upload", "download", "device_copy")) > 0
