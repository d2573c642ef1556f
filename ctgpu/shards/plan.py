"""Which sample goes to which shard: fixed, and saved, before the first byte is written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from ctgpu.arguments import converted
from ctgpu.codec import Coding, compressed_limit_bytes
from ctgpu.errors import MismatchError, NewerFormatError, UsageError, reason_of
from ctgpu.printable import counted
from ctgpu.shards import disk
from ctgpu.shards.lease import plan_lock
from ctgpu.shards.names import PLAN_NAME
from ctgpu.shards.tar import check_payload, extensions, key_fault
from ctgpu.shards.untrusted import (
    JSON_LIMIT_BYTES,
    Count,
    Fingerprint,
    Scalar,
    Text,
    decode,
    read_file,
)
from ctgpu.shards.versions import (
    FIFTH,
    FIRST,
    FOURTH,
    SECOND,
    THIRD,
    format_name,
    of_newer,
    version_of,
)
from ctgpu.spec import Spec
from ctgpu.volume.masks import MaskFormat
from ctgpu.volume.ref import Provenance, SampleRef
from ctgpu.volume.stored import numpy_dtype

_COLUMNS = ["key", "study_id", "path", "size_bytes", "checksum", "provenance"]


#: Of a shard, where nothing was said.
DEFAULT_SAMPLES_PER_SHARD = 128
#: Of volumes to what they take compressed, where none has been.  Chest CTs mostly have more than 2,
#: but those that keep the scan's own voxels down to 1.2, and a build that was let begin with too
#: little room fills the disk.
LEAST_EXPECTED_RATIO = 1.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that decides the bytes of a data set, and its samples in their order.

    Attributes
    ----------
    dataset, split : str
        Named in the manifest.
    spec : Spec
        Spacing, shape, window and layout of the output.
    arithmetic, fingerprint : str
        The engine's arithmetic, and the fingerprint of both.
    source : dict
        Identity of the source: ``kind``, ``location``, ``revision`` …
    selection : dict
        How its samples were chosen and ordered, JSON-ready.
    samples_per_shard : int
        Samples of each shard but the last.
    class_names : tuple of str
        The labels, in order.
    samples : sequence of SampleRef
        In plan order; keys are unique.
    data_set : dict or None
        Description of the data set, JSON-ready; None where it is CT-RATE's.
    masks : MaskFormat or None
        How the mask of each sample is stored; None where there are no masks.
    compression : {"pack", "rice"} or None
        How volumes and masks are compressed; None where they are stored as they are.
    """

    dataset: str
    split: str
    spec: Spec
    arithmetic: str
    fingerprint: str
    source: Mapping[str, Any]
    selection: Mapping[str, Any]
    samples_per_shard: int
    class_names: tuple[str, ...]
    samples: Sequence[SampleRef]
    data_set: Mapping[str, Any] | None = None
    masks: MaskFormat | None = None
    compression: Coding | None = None

    def __repr__(self) -> str:
        return (
            f"Plan({self.dataset!r} {self.split}: {counted(len(self.samples), 'sample')} in "
            f"{counted(self.shards, 'shard')}, fingerprint {self.fingerprint})"
        )

    @property
    def version(self) -> int:
        """Of the format: the first, unless the plan says what only a later one can say."""
        if self.compression is not None:
            return FIFTH
        if self.source["kind"] == "dicom":
            return FOURTH
        if self.masks is not None or "masks" in (self.data_set or ()):
            return FOURTH
        return self.shard_version if self.data_set is None else THIRD

    @property
    def shard_version(self) -> int:
        """Of its shards' records and its manifest, which do not describe the source."""
        if self.compression is not None:
            return FOURTH
        if self.masks is not None:
            return THIRD
        assumes = self.selection.get("assume_orientation") is not None
        return FIRST if self.spec.is_first_version and not assumes else SECOND

    @property
    def extensions(self) -> tuple[str, ...]:
        """The members of each sample, in their order."""
        return extensions(compressed=self.compression is not None, masks=self.masks is not None)

    @property
    def sample_bytes(self) -> int:
        """Bytes of one volume, and of its mask where there is one, before they are compressed."""
        mask_bytes = 0 if self.masks is None else self.masks.size_bytes(self.spec)
        return self.spec.size_bytes + mask_bytes

    @property
    def expected_bytes(self) -> int:
        """Of one sample's payloads in its shard: where they are compressed, assumed cautiously."""
        if self.compression is None:
            return self.sample_bytes
        return int(self.sample_bytes / LEAST_EXPECTED_RATIO)

    @property
    def payload_limits_bytes(self) -> tuple[int, ...]:
        """The most that the volume of a sample takes in its shard, and its mask if it has one."""
        voxels = [numpy_dtype(self.spec.dtype).itemsize]
        if self.masks is not None:
            voxels.append(self.masks.numpy_dtype.itemsize)
        h, w, d = self.spec.shape_hwd
        if self.compression is not None:
            return tuple(compressed_limit_bytes((d, h, w), one) for one in voxels)
        return tuple(h * w * d * one for one in voxels)

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return -(-len(self.samples) // self.samples_per_shard)

    def samples_of(self, index: int) -> Sequence[SampleRef]:
        """The samples of shard `index`, in order.

        Raises
        ------
        UsageError
            If there is no such shard.
        """
        if not 0 <= index < self.shards:
            raise UsageError(
                f"there is no shard {index}: the plan has shards 0 to {self.shards - 1}"
            )
        first = index * self.samples_per_shard
        return self.samples[first : first + self.samples_per_shard]

    @classmethod
    def create(cls, folder: Path, plan: Plan) -> Plan:
        """Save `plan` in `folder`, unless another process has saved one first.

        Parameters
        ----------
        folder : Path
            The data set's folder, which exists.
        plan : Plan
            What to save.

        Returns
        -------
        Plan
            The one that is in the folder; hold it against your own with :meth:`require`.

        Raises
        ------
        UsageError
            If a key, a path or the volume's size does not fit the format, or two samples share a
            key.
        StorageError
            If the folder cannot be written.
        """
        plan.check()
        path = folder / PLAN_NAME
        if not path.exists() and disk.create_exclusively(
            path, plan.to_json(), lambda: plan_lock(folder)
        ):
            return plan
        return cls.load(folder)

    def check(self) -> None:
        """Hold a plan that was made now against the format.

        Raises
        ------
        UsageError
            As :meth:`create`.
        """
        if self.samples_per_shard < 1:
            raise UsageError(
                f"samples_per_shard is {self.samples_per_shard}; a shard takes one sample at least"
            )
        self._check_payloads()
        if fault := _fault(self.samples):
            raise UsageError(f"{fault}; rename the file")

    @classmethod
    def load(cls, folder: Path) -> Plan:
        """The plan of a folder.

        Raises
        ------
        UsageError
            If it has none, or a damaged one.
        NewerFormatError
            If a newer ctgpu wrote it.
        """
        path = folder / PLAN_NAME
        try:
            return cls._from_json(read_file(path, JSON_LIMIT_BYTES))
        except NewerFormatError as error:
            raise of_newer(path, error) from error
        except FileNotFoundError:
            if path.is_symlink():
                raise UsageError(
                    f"{path} is a link to {path.readlink()}, which is not there; bring that back, "
                    "or build into another folder"
                ) from None
            raise UsageError(
                f"{folder} holds no {PLAN_NAME}, so it is not a folder that `ctgpu build` began"
            ) from None
        except OSError as error:
            raise UsageError(
                f"{path} cannot be read: {reason_of(error)}; mend that, or build into another "
                "folder"
            ) from error
        except (UsageError, ValueError) as error:
            raise UsageError(
                f"{path} is damaged ({error}); bring it back from a copy, or build into another "
                "folder"
            ) from error

    def facts(self) -> dict[str, Any]:
        """All but the samples, flat: ``split``, ``spec.layout``, ``source.revision`` …"""
        said = {"spec": self.spec.facts(), "compression": self.compression or "none"}
        return dict(_flatten("", self._head() | said))

    def differences(self, wanted: Plan | Mapping[str, Any]) -> list[str]:
        """What is not as `wanted`, one phrase for each field.

        Parameters
        ----------
        wanted : Plan or mapping
            Another plan, or some :meth:`facts`; what a mapping leaves out is not compared.

        Returns
        -------
        list of str
            Such as ``"spec.layout: found 'HWD', wanted 'DHW'"``; empty if all agree.
        """
        own = self.facts()
        other = wanted.facts() if isinstance(wanted, Plan) else dict(_flatten("", wanted))
        names = sorted(own.keys() | other.keys() if isinstance(wanted, Plan) else other.keys())
        found = [
            f"{name}: found {own.get(name)!r}, wanted {other.get(name)!r}"
            for name in names
            if own.get(name) != other.get(name)
        ]
        if isinstance(wanted, Plan) and not found and list(self.samples) != list(wanted.samples):
            found = [
                f"samples: found {len(self.samples)}, wanted {len(wanted.samples)}, "
                f"and not the same ones"
            ]
        return found

    def require(self, folder: Path, wanted: Plan | Mapping[str, Any]) -> None:
        """Refuse a plan that is not as `wanted`.

        Raises
        ------
        MismatchError
            Naming every difference.
        """
        if found := self.differences(wanted):
            raise MismatchError(
                f"{folder} was begun otherwise than asked for now ({'; '.join(found)}): leave "
                "these options out to go on with it, or choose another folder"
            )

    def to_json(self) -> bytes:
        """The content of ``plan.json``: one line for each sample."""
        stated = {"format": format_name("plan", self.version), **self._head()}
        head = json.dumps(stated, indent=1, sort_keys=True)
        dumps = json.JSONEncoder(separators=(",", ":")).encode
        rows = ",\n".join(
            dumps([s.key, s.study_id, s.path, s.size_bytes, s.checksum, s.provenance])
            for s in self.samples
        )
        text = f'{head[:-2]},\n "columns": {json.dumps(_COLUMNS)},\n "samples": [\n{rows}\n]}}\n'
        return text.encode()

    @classmethod
    def _from_json(cls, content: bytes) -> Plan:
        version = version_of(content, "plan")
        stored = decode(content, _StoredPlan)
        if stored.columns != _COLUMNS:
            raise ValueError(f"its columns are not {', '.join(_COLUMNS)}")
        if not stored.samples_per_shard:
            raise ValueError("samples_per_shard is 0")
        converted(stored.source, _Source)
        converted(stored.selection, _Selection)
        plan = cls(
            dataset=stored.dataset,
            split=stored.split,
            spec=Spec.from_dict(stored.spec),
            arithmetic=stored.arithmetic,
            fingerprint=stored.fingerprint,
            source=stored.source,
            selection=stored.selection,
            samples_per_shard=stored.samples_per_shard,
            class_names=tuple(stored.class_names),
            samples=[SampleRef(*row) for row in stored.samples],
            data_set=stored.data_set,
            masks=None if stored.masks is None else MaskFormat.from_dict(stored.masks),
            compression=stored.compression,
        )
        if plan.version != version:
            raise ValueError(
                f"it states {format_name('plan', version)} and says what takes "
                f"{format_name('plan', plan.version)}"
            )
        plan._check_payloads()
        if fault := _fault(plan.samples):
            raise ValueError(fault)
        return plan

    def _check_payloads(self) -> None:
        for limit_bytes in self.payload_limits_bytes:
            check_payload(limit_bytes)

    def _head(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset,
            "split": self.split,
            "spec": self.spec.to_dict(),
            "arithmetic": self.arithmetic,
            "fingerprint": self.fingerprint,
            "source": dict(self.source),
            "selection": dict(self.selection),
            "samples_per_shard": self.samples_per_shard,
            "class_names": list(self.class_names),
            **({} if self.data_set is None else {"data_set": dict(self.data_set)}),
            **({} if self.masks is None else {"masks": self.masks.to_dict()}),
            **({} if self.compression is None else {"compression": self.compression}),
        }


@dataclass(frozen=True, slots=True)
class _StoredPlan:
    """The content of ``plan.json``."""

    dataset: Text
    split: Text
    spec: dict[str, Any]
    arithmetic: Text
    fingerprint: Fingerprint
    source: dict[str, Text | dict[str, Text]]
    selection: dict[str, Scalar]
    samples_per_shard: Count
    class_names: list[Text]
    columns: list[str]
    samples: list[tuple[str, str, str, Count, str | None, Provenance]]
    data_set: dict[str, Any] | None = None
    masks: dict[str, Any] | None = None
    compression: Coding | None = None


class _Source(TypedDict):
    """What every plan states about its source, and what some do."""

    kind: Literal["hub", "folder", "tars", "dicom"]
    location: str
    revision: str
    path: NotRequired[str]
    root: NotRequired[str]
    requested_revision: NotRequired[str]
    missing_folders: NotRequired[dict[str, str]]


class _Selection(TypedDict, total=False):
    """What a plan may state about its selection; later versions state more."""

    recon: str | None
    order: str | None
    seed: int | None
    limit: int | None
    keep_no_chest: bool | None
    spacing_fallback: str | None
    axes: str | None
    max_tilt_degrees: float | None
    assume_orientation: str | None
    split_by: str | None
    fractions: str | None
    include: str | None
    exclude: str | None
    hu_guard: str | None
    keep_uids: bool | None
    masks: bool | None


def _fault(samples: Sequence[SampleRef]) -> str | None:
    """Why no plan may have these samples; None if it may.

    Keys become names in tars, and paths are opened: a plan may come from anywhere.
    """
    seen: dict[str, str] = {}
    for sample in samples:
        key, path = sample.key, sample.path
        if fault := key_fault(key):
            return f"{path}: its key {key!r} {fault}"
        if not path or path[0] == "/" or (".." in path and ".." in path.split("/")):
            return f"{path!r} is no path inside a source"
        if "\0" in path or "\0" in sample.study_id:
            return f"{path!r} holds the character NUL"
        other = seen.setdefault(key, path)
        if other is not path:
            return f"{other} and {path} would share the key {key!r} (dots and slashes become '_')"
    return None


def _flatten(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(f"{prefix}{name}.", value)
        else:
            yield f"{prefix}{name}", list(value) if isinstance(value, tuple) else value
