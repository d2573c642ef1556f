"""NVRTC without CuPy and without a GPU: CUDA C++ to PTX."""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
from pathlib import Path

import pytest

#: What CuPy adds by itself.  The arithmetic must not depend on it.
CUPY_OPTIONS = ("-ftz=true",)
WHEELS = {"12": "nvidia-cuda-nvrtc-cu12", "13": "nvidia-cuda-nvrtc"}


def nvrtc_libraries() -> dict[str, Path]:
    """NVRTC of every major version that a PyPI wheel brought."""
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(root) for root in (spec.submodule_search_locations or [])] if spec else []
    found = itertools.chain.from_iterable(root.glob("*/lib/libnvrtc.so.*") for root in roots)
    return {path.name.removeprefix("libnvrtc.so."): path for path in sorted(found)}


class CompileError(Exception):
    """What NVRTC says against a source."""


class Nvrtc:
    """The few calls of NVRTC that compiling takes."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))

    @classmethod
    def of_version(cls, major: str) -> Nvrtc:
        """That of one major version; the test is skipped where it is not installed."""
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
        library, program = self._library, ctypes.c_void_p()
        assert not library.nvrtcCreateProgram(
            ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None
        )
        try:
            texts = [option.encode() for option in options]
            failed = library.nvrtcCompileProgram(
                program, len(texts), (ctypes.c_char_p * len(texts))(*texts)
            )
            log = self._text(program, "ProgramLog").strip("\0\n ")
            if failed or log:
                raise CompileError(log)
            return self._text(program, "PTX").rstrip("\0")
        finally:
            library.nvrtcDestroyProgram(ctypes.byref(program))

    def _text(self, program: ctypes.c_void_p, what: str) -> str:
        size = ctypes.c_size_t()
        assert not getattr(self._library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        assert not getattr(self._library, f"nvrtcGet{what}")(program, text)
        return text.raw.decode()
