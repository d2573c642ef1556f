"""``ctgpu doctor``: what it finds, and that it never shows a token."""

from __future__ import annotations

import gzip
import http.server
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from ctgpu.checking import doctor
from ctgpu.cli.doctor import text_of
from ctgpu.engines import cuda, cupy_runtime
from ctgpu.engines.cpu import CpuEngine
from ctgpu.errors import DeviceError, EnvironmentFailure
from ctgpu.installation import install_command
from ctgpu.spec import CT_RATE
from ctgpu.testing.hub import LocalHub

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
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield Handler.seen
    server.shutdown()
    server.server_close()


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy_runtime, "driver_cuda_version", lambda: None)
    monkeypatch.setattr(doctor, "driver_cuda_version", lambda: None)


def found(report: doctor.Report) -> dict[str, doctor.Check]:
    return {check.name: check for check in report.checks}


def rendered(report: doctor.Report) -> str:
    text = io.StringIO()
    Console(file=text, width=200).print(text_of(report, 200))
    return text.getvalue()


@pytest.mark.usefixtures("no_driver", "hub")
def test_a_file_system_that_does_not_say_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = SimpleNamespace(total=0, used=0, free=0)
    monkeypatch.setattr("shutil.disk_usage", lambda path: unknown)
    disk = found(doctor.diagnose(tmp_path))["disk"]
    assert (disk.status, disk.facts["free_bytes"]) == ("ok", None)
    assert disk.text == f"the file system of {tmp_path} does not say how much is free"


@pytest.mark.usefixtures("no_driver", "hub")
def test_what_is_free_is_told_in_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 40_279 * CT_RATE.size_bytes
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=free, free=free))
    disk = found(doctor.diagnose(tmp_path))["disk"]
    assert disk.text.endswith(f"free at {tmp_path}: about 40,279 samples of 110.6 MB")


@pytest.mark.usefixtures("no_driver")
def test_a_machine_without_a_gpu(hub: list[tuple[str, str | None]], tmp_path: Path) -> None:
    report = doctor.diagnose(tmp_path / "not" / "yet")
    checks = found(report)
    assert report.device == "cpu"
    assert report.exit_code == 0
    # That there is no driver is said once, with the way out.
    assert report.why == "the CPU engine was chosen"
    assert [check.name for check in report.checks if "driver" in check.text + check.name] == [
        "NVIDIA driver"
    ]
    assert "CuPy" not in rendered(report)
    assert "install one or start the container" in checks["NVIDIA driver"].text
    assert checks["NVIDIA driver"].status == "missing"
    assert checks["CPU engine"].facts["variant"] in checks["CPU engine"].text
    assert checks["inflate"].facts["backend"] in ("libdeflate", "isal")
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


@pytest.mark.usefixtures("no_driver")
def test_a_hub_that_must_not_be_asked(
    hub: list[object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    check = found(doctor.diagnose(tmp_path))["Hub"]
    assert hub == []
    assert check.status == "missing"
    assert check.text.endswith("is not asked, as HF_HUB_OFFLINE is set")


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("kind", ["a file in its way", "a folder that takes no file"])
def test_a_kernel_cache_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    def refuse() -> None:
        raise DeviceError("CuPy cannot keep compiled kernels")

    (tmp_path / "file").touch()
    folder = str(tmp_path / "file" / "kernels") if kind.startswith("a file") else "/proc/self/task"
    monkeypatch.setenv("CUPY_CACHE_DIR", folder)
    for module in (doctor, cuda):
        monkeypatch.setattr(module, "import_cupy", refuse)
    monkeypatch.setattr(doctor, "driver_cuda_version", lambda: 13000)
    report = doctor.diagnose(tmp_path)
    check = found(report)["kernel cache"]
    assert check.status == "failed"
    assert check.text.startswith(f"{folder} cannot be written (")
    assert check.text.endswith("set CUPY_CACHE_DIR to a folder that can")
    assert report.device == "cpu"


def test_a_kernel_cache_that_can_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "new" / "kernels"))
    assert doctor._kernel_cache().status == "ok"
    monkeypatch.delenv("CUPY_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert doctor._kernel_cache().text == str(tmp_path / ".cupy" / "kernel_cache")


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    check = doctor._endpoint()
    assert check.status == "missing"
    assert "http://127.0.0.1:9 cannot be reached" in check.text


@pytest.mark.parametrize("stated", ["file:///etc/passwd", "http://hub:99999", "http://[::1"])
def test_an_endpoint_that_is_no_address(monkeypatch: pytest.MonkeyPatch, stated: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", stated)
    check = doctor._endpoint()
    assert check.status == "failed"
    assert check.text.startswith(f"HF_ENDPOINT is '{stated}', which is not an address")


@pytest.mark.usefixtures("no_driver")
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_an_endpoint_that_is_no_address_decides_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://[::1")
    assert doctor.diagnose(tmp_path, device=device).exit_code == 2


def test_a_hub_that_never_ends_its_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(doctor, "_HUB_TIMEOUT_S", 0.3)
    with LocalHub(tmp_path) as local:
        local.faults.answers = {"info": ["trickle_head"]}
        monkeypatch.setenv("HF_ENDPOINT", f"{local.url}/api/datasets/{local.repo_id}/revision/main")
        check = doctor._endpoint()
    assert check.status == "missing"
    assert "cannot be reached (no whole answer in time)" in check.text


def test_a_proxy_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("http_proxy", "socks5://user:secret@127.0.0.1:1")
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    check = doctor._endpoint()
    assert check.status == "missing"
    assert "the proxy socks5://127.0.0.1:1 " in check.text
    assert "secret" not in check.text


def test_a_driver_without_cupy_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, hub: list[object], tmp_path: Path
) -> None:
    def refuse() -> None:
        raise DeviceError("CuPy is not installed; `pip install 'ctgpu[cuda12]'`")

    def not_installed(name: str) -> str:
        raise doctor.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "driver_cuda_version", lambda: 12040)
    monkeypatch.setattr(doctor, "import_cupy", refuse)
    monkeypatch.setattr(cuda, "import_cupy", refuse)
    with monkeypatch.context() as without:
        without.setattr(doctor.metadata, "version", not_installed)
        report = doctor.diagnose(tmp_path)
    assert report.next_command == install_command("cuda12")
    assert found(report)["NVIDIA driver"].text.endswith(f"`{install_command('cuda12')}`")
    assert found(report)["GPU"].status == "failed"
    assert "'ctgpu[cuda12]'" in rendered(report)  # markup does not swallow it
    assert report.device == "cpu"


@pytest.mark.gpu
def test_a_machine_with_a_gpu(hub: list[object], tmp_path: Path) -> None:
    report = doctor.diagnose(tmp_path)
    assert report.device == cuda.CudaEngine().name
    facts = found(report)["cuda:0"].facts
    assert min(facts[f"{what}_gb_per_s"] for what in ("upload", "download", "device_copy")) > 0


def inflated(monkeypatch: pytest.MonkeyPatch, backend: str) -> doctor.Check:
    monkeypatch.setattr(doctor, "inflate_backend", lambda: backend)
    monkeypatch.setitem(doctor.BACKENDS, backend, doctor.BACKENDS["isal"])
    return doctor._inflate()


def test_where_libdeflate_is_built_in_its_rate_alone_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check = inflated(monkeypatch, "libdeflate")
    assert check.text == f"libdeflate, {check.facts['gb_per_s']:.2f} GB/s, one thread"


@pytest.mark.parametrize(
    ("platform", "way"), [("linux", "apt install libdeflate-dev"), ("darwin", "brew install")]
)
def test_what_libdeflate_would_gain_is_measured_where_it_is_there(
    monkeypatch: pytest.MonkeyPatch, platform: str, way: str
) -> None:
    monkeypatch.setattr("sys.platform", platform)
    seen: list[bytes] = []

    def inflate(data: Any, out: Any) -> None:
        seen.append(gzip.decompress(bytes(data)))
        assert len(seen[-1]) == out.size

    monkeypatch.setattr(doctor, "_loaded_libdeflate", lambda: inflate)
    for other, said in ((0.8, f"so `{way}"), (0.5, "which gains nothing here")):
        rates = iter((0.5, other))

        def measured(run: Any, size_bytes: int, rates: Iterator[float] = rates) -> float:
            run()
            return next(rates)

        monkeypatch.setattr(doctor, "_inflate_rate", measured)
        check = inflated(monkeypatch, "isal")
        begin = f"isal, 0.50 GB/s, one thread; libdeflate: {other:.2f} GB/s, "
        assert check.text.startswith(begin + said)
        assert check.facts["libdeflate_gb_per_s"] == other
    assert len(seen) == 2
    monkeypatch.setattr(doctor, "_inflate_rate", lambda run, size_bytes: 0.5)
    monkeypatch.setattr(doctor, "_loaded_libdeflate", lambda: None)
    check = inflated(monkeypatch, "isal")
    assert f"once it is there: `{way}" in check.text
    assert "libdeflate_gb_per_s" not in check.facts


def test_the_libdeflate_of_the_system_inflates(monkeypatch: pytest.MonkeyPatch) -> None:
    if (inflate := doctor._loaded_libdeflate()) is None:
        pytest.skip("there is no libdeflate here")
    packed = np.frombuffer(gzip.compress(b"lung" * 1000), np.uint8)
    out = np.zeros(4000, np.uint8)
    inflate(packed, out)
    assert out.tobytes() == b"lung" * 1000
    with pytest.raises(EnvironmentFailure, match="libdeflate refuses a gzip stream"):
        inflate(packed[:-9], out)
    monkeypatch.setattr(doctor.ctypes, "CDLL", raising_os_error)
    assert doctor._loaded_libdeflate() is None


def raising_os_error(name: str) -> None:
    raise OSError(f"{name}: cannot open shared object file")
