"""What a ``manifest.json`` says, for those who read one.

It may be from any writer.  A :class:`Card` is what a data set of ctgpu must state to be loaded;
:class:`Claims` are what else there may be to learn from the manifest beside some tars.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctgpu.arguments import converted
from ctgpu.codec import Coding
from ctgpu.errors import NewerFormatError, StorageError, UsageError, reason_of
from ctgpu.shards.names import MANIFEST_NAME
from ctgpu.shards.plan import Plan
from ctgpu.shards.untrusted import Count, Fingerprint, Text, read_json
from ctgpu.shards.versions import of_newer, parse_version
from ctgpu.spec import Spec
from ctgpu.volume.masks import MaskFormat

_SPLITS: Mapping[str, str] = {"train": "train", "valid": "valid", "validation": "valid"}


@dataclass(frozen=True, slots=True)
class Card:
    """What all samples of a data set of ctgpu share, and how many are planned.

    Attributes
    ----------
    spec : Spec
        What the samples were made to.
    fingerprint : str
        Of the plan.
    class_names : tuple of str
        The labels, in order.
    planned_shards, planned_samples : int or None
        Of the whole data set; None where the manifest does not say, as older ones.
    masks : MaskFormat or None
        How the mask of each sample is stored; None where there are no masks.
    compression : {"pack", "rice"} or None
        How volumes and masks are compressed, which is no part of what they are.
    """

    spec: Spec
    fingerprint: str
    class_names: tuple[str, ...]
    planned_shards: int | None = field(default=None, compare=False)
    planned_samples: int | None = field(default=None, compare=False)
    masks: MaskFormat | None = None
    compression: Coding | None = field(default=None, compare=False)

    @classmethod
    def load(cls, folder: Path) -> Card:
        """From the folder's manifest, or from its plan while the build goes on.

        Raises
        ------
        UsageError
            If the folder has neither, or they are damaged.
        NewerFormatError
            If a newer ctgpu wrote them.
        StorageError
            If the manifest cannot be read.
        """
        path = folder / MANIFEST_NAME
        if not path.exists():
            plan = Plan.load(folder)
            return cls(
                plan.spec,
                plan.fingerprint,
                plan.class_names,
                plan.shards,
                len(plan.samples),
                plan.masks,
                plan.compression,
            )
        way_out = f"`ctgpu manifest {shlex.quote(str(folder))}` derives it again"
        try:
            stated = read_json(path)
            _require_known(stated)
            stored = converted(stated, _StoredCard)
            return cls(
                Spec.from_dict(stored.spec),
                stored.fingerprint,
                tuple(stored.class_names),
                stored.planned_shards,
                stored.planned_samples,
                None if stored.masks is None else MaskFormat.from_dict(stored.masks),
                stored.compression,
            )
        except NewerFormatError as error:
            raise of_newer(path, error) from error
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {reason_of(error)}; {way_out}") from error
        except (UsageError, ValueError) as error:
            raise UsageError(
                f"{path} is not the manifest of a ctgpu data set ({error}); {way_out}"
            ) from error


@dataclass(frozen=True, slots=True)
class _StoredCard:
    """What a manifest states of it."""

    spec: dict[str, Any]
    fingerprint: Fingerprint
    class_names: list[Text]
    masks: dict[str, Any] | None = None
    planned_shards: Count | None = None
    planned_samples: Count | None = None
    compression: Coding | None = None


class Claims:
    """What a manifest of any writer claims about the tars beside it.

    Each claim is judged when it is asked for, so that a reader depends on no more than it needs.

    Parameters
    ----------
    path : Path
        The manifest, for messages.
    stated : mapping
        Its content.
    """

    def __init__(self, path: Path, stated: Mapping[str, Any]) -> None:
        self.path = path
        self._stated = stated

    @classmethod
    def load(cls, folder: Path) -> Claims | None:
        """Those of the folder's manifest; None where it has none.

        Raises
        ------
        UsageError
            If it cannot be read, or is no JSON object.
        NewerFormatError
            If a newer ctgpu wrote it.
        """
        path = folder / MANIFEST_NAME
        try:
            stated = read_json(path)
            _require_known(stated)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UsageError(
                f"{path} cannot be read: {reason_of(error)}; remove it, or bring it back from a "
                "copy"
            ) from error
        except NewerFormatError as error:
            raise of_newer(path, error) from error
        except ValueError as error:
            raise UsageError(f"{path} is damaged: {error}") from error
        if not isinstance(stated, dict):
            raise UsageError(f"{path} is damaged: it is no JSON object")
        return cls(path, stated)

    @classmethod
    def if_readable(cls, folder: Path) -> Claims:
        """Those of the folder's manifest; none at all where it cannot be read.

        Raises
        ------
        NewerFormatError
            If a newer ctgpu wrote it.
        """
        try:
            claims = cls.load(folder)
        except NewerFormatError:
            raise
        except UsageError:
            claims = None
        return claims or cls(folder / MANIFEST_NAME, {})

    @property
    def spec(self) -> Spec | None:
        """What the samples were made to; None where that is not stated.

        Raises
        ------
        UsageError
            If it is no :class:`~ctgpu.spec.Spec`.
        NewerFormatError
            If it is that of a newer ctgpu.
        """
        spec = self._stated.get("spec")
        try:
            return Spec.from_dict(spec) if isinstance(spec, dict) else None
        except NewerFormatError as error:
            raise of_newer(self.path, error) from error

    @property
    def selection(self) -> Mapping[str, Any]:
        """How the samples were chosen, as a plan states it; empty where that is not stated."""
        selection = self._stated.get("selection")
        return selection if isinstance(selection, dict) else {}

    @property
    def split(self) -> str | None:
        """Which part of the data set it is; None where it is named as no part is."""
        return _SPLITS.get(str(self._stated.get("split")))

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The labels, in order; None where they are not named."""
        names = self._stated.get("class_names")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            return None
        return tuple(names)

    @property
    def masks(self) -> MaskFormat | None:
        """How the masks beside the volumes are stored; None where none are stated, or not so."""
        with contextlib.suppress(ValueError):
            return MaskFormat.from_dict(self._stated.get("masks"))
        return None

    @property
    def preprocessed(self) -> bool:
        """Whether the volumes are preprocessed, not raw."""
        return self._stated.get("preprocessed") is True

    @property
    def sample_shape(self) -> tuple[int, ...] | None:
        """The shape of every volume as stored; None where it is not stated.

        Raises
        ------
        UsageError
            If it is not three whole numbers.
        """
        stated = self._stated.get("sample_shape")
        if not stated:
            return None
        try:
            shape = tuple(int(n) for n in stated)
        except (TypeError, ValueError):
            shape = ()
        if len(shape) != 3:
            raise UsageError(
                f"{self.path} has the sample_shape {stated!r}; wanted three whole numbers"
            )
        return shape


def refuse_newer(folder: Path) -> None:
    """Leave a folder alone whose manifest a newer ctgpu wrote; any other one may be replaced.

    Raises
    ------
    NewerFormatError
    """
    try:
        _ = Claims.if_readable(folder).spec
    except NewerFormatError:
        raise
    except UsageError:
        return


def _require_known(stated: Any) -> None:
    """Refuse the content of a manifest that states a newer version; others state none, or theirs.

    Raises
    ------
    NewerFormatError
    """
    stated_format = stated.get("manifest_format") if isinstance(stated, dict) else None
    if isinstance(stated_format, str):
        with contextlib.suppress(ValueError):
            parse_version(stated_format, "manifest")
