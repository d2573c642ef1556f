"""How fast do series of DICOM become shards, against SimpleITK's reader and the old way's steps?

Series of uncompressed single frames lie in a local folder, in the page cache.  SimpleITK finds the
slices of each and reads them (``ImageSeriesReader``), then come numpy and torch steps and
``TarWriter``: in one thread, and as one process per core.  ``ctgpu.build`` reads every header,
makes its plan and builds.
"""

from __future__ import annotations

import importlib
import locale
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.asking import Asked, Scan
from benchmarks.harness.measuring import Facts
from benchmarks.peers import old_way
from benchmarks.questions import build

ALONE, PER_CORE = "SimpleITK, one thread", "SimpleITK, one process per core"


def answer(asked: Asked) -> Facts:
    """Run every contender, one after the other."""
    scan, how = asked.scan((48, 40, 30)), build.settings(asked)
    with asked.folder() as folder:
        numbers = range(how["samples_per_run"])
        series = [write_series(folder / "pacs" / str(n), scan, n) for n in numbers]
        old = partial(by_simpleitk, series[: how["old_samples_per_process"]])
        facts = build.race(asked, folder, (ALONE, PER_CORE), old, {"source": folder / "pacs"})
        return {
            "data": f"{scan.about}, as uncompressed DICOM",
            **how,
            "series_files": scan.voxels.shape[2],
            "series_bytes": sum(path.stat().st_size for path in series[0].iterdir()),
            **facts,
        }


def write_series(folder: Path, scan: Scan, number: int) -> Path:
    """The scan as single frames, by SimpleITK; returns the folder."""
    itk: Any = importlib.import_module("SimpleITK")
    folder.mkdir(parents=True)
    h_mm, w_mm, d_mm = scan.spacing_mm
    # SimpleITK leaves it at "C" where it has written DICOM.
    before = locale.setlocale(locale.LC_ALL)
    writer = itk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in range(scan.voxels.shape[2]):
        image = itk.GetImageFromArray(np.ascontiguousarray(scan.voxels[:, :, k].T, np.int16))
        image.SetSpacing((h_mm, w_mm))
        for tag, value in {
            "0008|0060": "CT",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"1.2.3.{number + 1}.{k + 1}",
            "0020|000d": f"1.2.3.{number + 1}.0.1",
            "0020|000e": f"1.2.3.{number + 1}.0.2",
            "0020|0013": str(k + 1),
            "0020|0032": f"0\\0\\{k * d_mm:g}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0028|1052": "0",
            "0028|1053": "1",
        }.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{k:04d}.dcm"))
        writer.Execute(image)
    locale.setlocale(locale.LC_ALL, before)
    return folder


def by_simpleitk(series: list[Path], folder: Path) -> None:
    """Make a shard of the series in one thread."""
    import torch
    import webdataset

    itk: Any = importlib.import_module("SimpleITK")
    torch.set_num_threads(1)
    itk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    folder.mkdir()
    with webdataset.TarWriter(str(folder / "shard-000000.tar")) as sink:
        for path in series:
            reader = itk.ImageSeriesReader()
            reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(path)))
            image = reader.Execute()
            voxels = itk.GetArrayFromImage(image).transpose(2, 1, 0)
            volume = old_way.preprocess(voxels, image.GetSpacing())
            old_way.write(sink, path.name, volume, np.zeros(18, np.float32), "")
