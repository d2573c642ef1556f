"""Which sample goes to which shard: fixed, and saved, before the first byte is written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctgpu.errors import MismatchError, UsageError
from ctgpu.shards import disk
from ctgpu.shards.lease import plan_lock
from ctgpu.shards.names import PLAN_NAME
from ctgpu.shards.tar import check_key, check_payload
from ctgpu.sources.base import Provenance
from ctgpu.spec import Spec

FORMAT = "ctgpu-plan-1"
_COLUMNS = ["key", "study_id", "path", "size_bytes", "checksum", "provenance"]


@dataclass(frozen=True, slots=True)
class PlannedSample:
    """One sample of a plan.

    Attributes
    ----------
    key : str
        Name of its members in the shard.
    study_id : str
        How the CSVs name it.
    path : str
        Relative to the source.
    size_bytes : int
        Of the source file.
    checksum : str or None
        Of the source file, ``"sha256:<hex>"``, where the source states one.
    provenance : {"fixed", "v1", "unknown"}
        What the path says about the voxels.
    """

    key: str
    study_id: str
    path: str
    size_bytes: int
    checksum: str | None = None
    provenance: Provenance = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that decides the bytes of a data set, and its samples in their order.

    Attributes
    ----------
    dataset, split : str
        Named in the manifest.
    spec : Spec
        What the output shall be.
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
    samples : sequence of PlannedSample
        In plan order; keys are unique.
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
    samples: Sequence[PlannedSample]

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return -(-len(self.samples) // self.samples_per_shard)

    def samples_of(self, index: int) -> Sequence[PlannedSample]:
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
            If a key or the volume's size does not fit the format, or two samples share a key.
        StorageError
            If the folder cannot be written.
        """
        plan._check()
        path = folder / PLAN_NAME
        if not path.exists() and disk.create_exclusively(
            path, plan.to_json(), lambda: plan_lock(folder)
        ):
            return plan
        return cls.load(folder)

    @classmethod
    def load(cls, folder: Path) -> Plan:
        """The plan of a folder.

        Raises
        ------
        UsageError
            If it has none, or a damaged one, or one of a newer ctgpu.
        """
        path = folder / PLAN_NAME
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            raise UsageError(
                f"{folder} holds no {PLAN_NAME}, so it is not a folder that `ctgpu build` began"
            ) from None
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from error
        try:
            return cls._from_json(text)
        except (
            UsageError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            raise UsageError(
                f"{path} is damaged or of another version ({error}); bring it back from a copy, "
                "or build into another folder"
            ) from error

    def facts(self) -> dict[str, Any]:
        """All but the samples, flat: ``split``, ``spec.layout``, ``source.revision`` …"""
        return dict(_flatten("", self._head()))

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
        head = json.dumps(self._head(), indent=1, sort_keys=True)
        dumps = json.JSONEncoder(separators=(",", ":")).encode
        rows = ",\n".join(
            dumps([s.key, s.study_id, s.path, s.size_bytes, s.checksum, s.provenance])
            for s in self.samples
        )
        text = f'{head[:-2]},\n "columns": {json.dumps(_COLUMNS)},\n "samples": [\n{rows}\n]}}\n'
        return text.encode()

    @classmethod
    def _from_json(cls, text: bytes) -> Plan:
        values = json.loads(text)
        if values["format"] != FORMAT or values["columns"] != _COLUMNS:
            raise ValueError(f"its format is not {FORMAT}")
        plan = cls(
            **{
                name: values[name]
                for name in ("dataset", "split", "arithmetic", "fingerprint", "source", "selection")
            },
            spec=Spec.from_dict(values["spec"]),
            samples_per_shard=values["samples_per_shard"],
            class_names=tuple(values["class_names"]),
            samples=[PlannedSample(*row) for row in values["samples"]],
        )
        if type(plan.samples_per_shard) is not int or plan.samples_per_shard < 1:
            raise ValueError("samples_per_shard is not a number above zero")
        return plan

    def _head(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "dataset": self.dataset,
            "split": self.split,
            "spec": self.spec.to_dict(),
            "arithmetic": self.arithmetic,
            "fingerprint": self.fingerprint,
            "source": dict(self.source),
            "selection": dict(self.selection),
            "samples_per_shard": self.samples_per_shard,
            "class_names": list(self.class_names),
        }

    def _check(self) -> None:
        if self.samples_per_shard < 1:
            raise UsageError(
                f"samples_per_shard is {self.samples_per_shard}; a shard takes one sample at least"
            )
        check_payload(self.spec.size_bytes)
        seen: dict[str, str] = {}
        for sample in self.samples:
            check_key(sample.key, sample.path)
            other = seen.setdefault(sample.key, sample.path)
            if other is not sample.path:
                raise UsageError(
                    f"{other} and {sample.path} would share the key {sample.key!r} (dots and "
                    "slashes become '_'); rename one of the files"
                )


def _flatten(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(f"{prefix}{name}.", value)
        else:
            yield f"{prefix}{name}", list(value) if isinstance(value, tuple) else value
