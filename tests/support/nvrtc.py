"""NVRTC without CuPy and without a GPU: CUDA C++ to PTX and machine code."""

from __future__ import annotations

import ctypes
import importlib.util
from dataclasses import dataclass
from pathlib import Path

#: What CuPy adds by itself.  The arithmetic must not depend on it.
CUPY_OPTIONS = ("-ftz=true",)
WHEELS = {"12": "nvidia-cuda-nvrtc-cu12", "13": "nvidia-cuda-nvrtc"}


def in_wheels(pattern: str) -> list[Path]:
    """Files of NVIDIA's wheels, those of the newest CUDA last."""
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(root) for root in (spec.submodule_search_locations or [])] if spec else []
    return sorted(path for root in roots for path in root.glob(pattern))


def nvrtc_libraries() -> dict[str, Path]:
    """NVRTC of every major version that a PyPI wheel brought, the newest last."""
    found = {
        path.name.removeprefix("libnvrtc.so."): path for path in in_wheels("*/lib/libnvrtc.so.*")
    }
    return dict(sorted(found.items(), key=lambda item: int(item[0])))


class CompileError(Exception):
    """What NVRTC says against a source."""


@dataclass(frozen=True)
class Compiled:
    """What NVRTC made of a source: PTX, machine code (of a real GPU), and what was said of them."""

    ptx: str
    cubin: bytes
    log: str


class Nvrtc:
    """The few calls of NVRTC that compiling takes; may be used by several threads."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))

    @classmethod
    def of_version(cls, major: str) -> Nvrtc:
        """That of one major version; the test is skipped where it is not installed."""
        import pytest  # benchmarks use what is here, and have no need of it

        path = nvrtc_libraries().get(major)
        if path is None:
            pytest.skip(f"no NVRTC {major}: pip install {WHEELS[major]}")
        return cls(path)

    def version(self) -> tuple[int, int]:
        """Major and minor version."""
        major, minor = ctypes.c_int(), ctypes.c_int()
        assert not self._library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        return major.value, minor.value

    def compile(self, source: str, options: tuple[str, ...]) -> str:
        """The PTX.

        Raises
        ------
        CompileError
            On an error and on a warning.
        """
        made = self.build(source, options)
        if made.log:
            raise CompileError(made.log)
        return made.ptx

    def build(self, source: str, options: tuple[str, ...]) -> Compiled:
        """All that comes of a source.

        Raises
        ------
        CompileError
            On an error.
        """
        library, program = self._library, ctypes.c_void_p()
        assert not library.nvrtcCreateProgram(
            ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None
        )
        try:
            texts = [option.encode() for option in options]
            failed = library.nvrtcCompileProgram(
                program, len(texts), (ctypes.c_char_p * len(texts))(*texts)
            )
            log = self._output(program, "ProgramLog").decode().strip("\0\n ")
            if failed:
                raise CompileError(log)
            ptx = self._output(program, "PTX").decode().rstrip("\0")
            return Compiled(ptx, self._output(program, "CUBIN"), log)
        finally:
            library.nvrtcDestroyProgram(ctypes.byref(program))

    def _output(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        assert not getattr(self._library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        if size.value:
            assert not getattr(self._library, f"nvrtcGet{what}")(program, text)
        return text.raw
