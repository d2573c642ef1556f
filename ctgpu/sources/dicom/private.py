"""What says whom the samples show: it stays beside the plan, in ``private/series.json``."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ctgpu.decode.dicom_header import SliceHeader
from ctgpu.errors import UsageError, reason_of
from ctgpu.shards import disk
from ctgpu.shards.lease import plan_lock
from ctgpu.shards.names import PRIVATE_NAME
from ctgpu.shards.untrusted import JSON_LIMIT_BYTES, decode, read_file
from ctgpu.volume.ref import normal_form

REGISTER_NAME = "series.json"

_FORMAT = "ctgpu-private-1"
_SALT_BYTES = 32
# 80 bits: of a million series, two of one key are as likely as 1 in 10**12.
_KEY_BYTES = 10
_UID = re.compile(r"[0-9.]{1,64}")


class SeriesFile(msgspec.Struct, frozen=True, array_like=True):
    """A file that was looked into, and what it says.

    Attributes
    ----------
    path : str
        Below the source.
    size_bytes, mtime_ns : int
        When it was looked into; one that has others now is looked into again.
    header : SliceHeader or None
        Of a slice; None of what is none.
    left_out : str
        Why it is no slice; empty of one.
    """

    path: str
    size_bytes: int
    mtime_ns: int
    header: SliceHeader | None = None
    left_out: str = ""


class Series(msgspec.Struct, frozen=True):
    """The slices of one series.

    Attributes
    ----------
    series_uid, study_uid : str
        As the files state them.
    files : tuple of SeriesFile
        In the order of their paths, each with its header.
    """

    series_uid: str
    study_uid: str
    files: tuple[SeriesFile, ...]

    @property
    def size_bytes(self) -> int:
        """Of all its files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def folders(self) -> set[str]:
        """Those that its files lie in, below the source."""
        return {os.path.dirname(file.path) for file in self.files}


class Register(msgspec.Struct, frozen=True, kw_only=True):
    """The content of ``private/series.json``.

    Attributes
    ----------
    salt : str
        Hexadecimal; of the keys.
    root : str
        The source, when it was planned.
    series : dict of str to Series
        By key.
    others : tuple of SeriesFile
        Files that are no slices of them, and why.
    """

    salt: str
    root: str
    series: dict[str, Series] = {}
    others: tuple[SeriesFile, ...] = ()
    format: str = _FORMAT

    @property
    def known(self) -> dict[str, SeriesFile]:
        """Every file that was looked into, by path."""
        slices = (file for series in self.series.values() for file in series.files)
        return {file.path: file for file in (*slices, *self.others)}

    def to_json(self) -> bytes:
        """The file's content."""
        try:
            return msgspec.json.encode(self)
        except UnicodeEncodeError:  # names of files may be any bytes
            return json.dumps(msgspec.to_builtins(self), separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class Pseudonyms:
    """How series are called, and where it is kept which ones they are.

    Attributes
    ----------
    folder : Path or None
        The data set's; None keeps nothing, and every listing has keys of its own.
    keep_uids : bool
        A series is called by its SeriesInstanceUID, and not by a salted hash of that.
    begun : bool
        There is a plan already, whose keys must be met.
    """

    folder: Path | None = None
    keep_uids: bool = False
    begun: bool = False

    def load(self) -> Register | None:
        """What is known of the series; None where nothing is yet.

        Raises
        ------
        UsageError
            If it cannot be read, or is gone although the keys of a plan depend on it.
        """
        if self.folder is None:
            return None
        path = self.folder / PRIVATE_NAME / REGISTER_NAME
        try:
            content = read_file(path, JSON_LIMIT_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            if not self.begun or self.keep_uids:
                return None
            reason = "is not there"
        except OSError as error:
            reason = f"cannot be read ({reason_of(error)})"
        else:
            try:
                return _read(content)
            except ValueError:
                # What msgspec says may quote it.
                reason = "is damaged"
        raise UsageError(
            f"{path} {reason}: it alone says which series the samples of this data set were made "
            "of; bring it back from where the data set was begun, or build into another folder"
        )

    def settle_salt(self, root: Path) -> Register:
        """A register to begin with: the one that is there, or else a new one, kept at once.

        Of several processes that begin together all get the same.

        Raises
        ------
        UsageError
            As :meth:`load`.
        StorageError
            If it cannot be written.
        """
        if (known := self.load()) is not None:
            return known
        new = Register(salt=secrets.token_hex(_SALT_BYTES), root=str(root.resolve()))
        return self.keep(new)

    def keep(self, register: Register) -> Register:
        """Keep a register where none is kept yet; returns the one that is.

        Raises
        ------
        UsageError
            As :meth:`load`.
        StorageError
            If it cannot be written.
        """
        if self.folder is None:
            return register
        folder = self.folder
        private = folder / PRIVATE_NAME
        with disk.storage_errors(private):
            private.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Whoever keeps data sets in git, or pushes them to the Hub by it, does not push this.
        for name, content in ((".gitignore", b"*\n"), (REGISTER_NAME, register.to_json())):
            is_ours = disk.create_exclusively(
                private / name, content, lambda: plan_lock(folder), 0o600
            )
        return register if is_ours else self.load() or register

    def save(self, register: Register) -> None:
        """Keep what is known of the series.

        Raises
        ------
        StorageError
            If it cannot be written.
        """
        if self.folder is not None:
            private = self.folder / PRIVATE_NAME
            disk.remove_stale_temporaries(private)
            disk.replace_file(private / REGISTER_NAME, register.to_json(), 0o600)

    def key_of(self, series_uid: str, salt: str) -> str:
        """What a series is called.

        Raises
        ------
        UsageError
            If its UID is to be kept, and is none.
        """
        if not self.keep_uids:
            hashed = hashlib.blake2b(
                series_uid.encode(errors="surrogateescape"),
                key=bytes.fromhex(salt),
                digest_size=_KEY_BYTES,
            )
            return hashed.hexdigest()
        if not _UID.fullmatch(series_uid):
            raise UsageError(
                "keep_uids (--keep-uids) names samples by their SeriesInstanceUID, and one of the "
                "series has none of digits and dots; leave --keep-uids out"
            )
        return series_uid


def aliases_of(series: Mapping[str, Series]) -> dict[str, str]:
    """What tables may call series, and the keys of these.

    That is the SeriesInstanceUID; and the StudyInstanceUID, or the name of a folder above the
    slices, where it belongs to one of the series alone.
    """
    names: dict[str, set[str]] = {}
    for key, one in series.items():
        folders = {part for folder in one.folders for part in folder.split("/") if part}
        for name in {one.series_uid, one.study_uid, *folders} - {""}:
            names.setdefault(name, set()).add(key)
    return {normal_form(n): next(iter(keys)) for n, keys in names.items() if len(keys) == 1}


def root_of(folder: Path) -> str | None:
    """Where the source of a data set was when it was begun; None where that is not kept.

    Raises
    ------
    UsageError
        If what is kept cannot be read.
    """
    register = Pseudonyms(folder).load()
    return None if register is None else register.root


def _read(content: bytes) -> Register:
    register = decode(content, Register)
    if register.format != _FORMAT or len(bytes.fromhex(register.salt)) != _SALT_BYTES:
        raise ValueError
    return register
