"""Volumes in a data set on the Hugging Face Hub, or on a server that speaks its protocol."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlsplit

from ctgpu.buffers import Allocate
from ctgpu.data_sets import Description, built_in
from ctgpu.data_sets.globs import folders_of
from ctgpu.errors import SourceError, UsageError
from ctgpu.shards.names import natural_key
from ctgpu.sources.base import Source
from ctgpu.sources.fetched import Fetched
from ctgpu.sources.hub.client import DEFAULT_ENDPOINT, HubClient, NotFoundError
from ctgpu.sources.hub.spool import SpoolPool
from ctgpu.sources.hub.transfer import Patience
from ctgpu.sources.strays import without_strays
from ctgpu.volume.ref import VOLUME_SUFFIXES, SampleRef

# The first contact fails sooner than the thousandth: nothing is lost yet, and someone is waiting.
_FIRST_CONTACT_ATTEMPTS = 6
# Ten million entries, as the Hub divides them.
_MOST_PAGES = 10_000


class HubSource(Source):
    """A data set on the Hub, pinned to one commit.

    Only the folders are listed, with sizes and checksums, that the volumes of the split asked for
    can be in.  Volumes are streamed into the allocated buffer; what breaks off is taken up again
    where it broke off.

    Parameters
    ----------
    repo_id : str
        Such as ``ibrahimhamamci/CT-RATE``.
    revision : str, optional
        Branch, tag or commit; ``main`` by default.  A whole commit hash is believed without
        asking.
    token : str or False, optional
        Access token; by default ``HF_TOKEN`` or the login of ``hf auth login``; False for none.
    endpoint : str, optional
        Address of the Hub; by default ``HF_ENDPOINT`` or huggingface.co.
    part_count : int
        Processes that share the account: each keeps to its part of the quotas.
    temp_dir : Path, optional
        Spool volumes to files there instead of into the allocated memory; the files have no names
        and vanish with their buffers or their process.
    patience : Patience, optional
        How long a failing network is tolerated.
    data_set : Description, optional
        What lies where; by default CT-RATE's.

    Raises
    ------
    UsageError
        If `repo_id` is not a name that the Hub allows, or the endpoint no address.
    SourceError
        If ``HF_HUB_OFFLINE`` is set.
    AccessError
        If the token cannot be one.
    StorageError
        If `temp_dir` cannot be written.
    """

    def __init__(
        self,
        repo_id: str,
        revision: str | None = None,
        *,
        token: str | Literal[False] | None = None,
        endpoint: str | None = None,
        part_count: int = 1,
        temp_dir: Path | None = None,
        patience: Patience | None = None,
        data_set: Description | None = None,
    ) -> None:
        self.data_set = data_set or built_in()
        hub_address(endpoint)
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

        try:
            validate_repo_id(repo_id)
        except HFValidationError:
            raise UsageError(
                f"{repo_id!r} is not the name of a data set; wanted OWNER/NAME"
            ) from None
        if is_offline():
            raise SourceError(
                f"HF_HUB_OFFLINE is set, so {repo_id} cannot be asked for; unset it, or pass "
                "--source with a local copy"
            )
        token, self._endpoint = account_of(token, endpoint)
        self._repo_id = repo_id
        self._asked_revision = revision or "main"
        self._commit: str | None = None
        self._commit_lock = threading.Lock()
        self._client = HubClient(self._endpoint, repo_id, token, patience or Patience(), part_count)
        self._spool = SpoolPool(temp_dir) if temp_dir is not None else None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._repo_id!r}, {self._asked_revision!r})"

    @property
    def commit(self) -> str:
        """The commit that `revision` stood for when it was first asked for.

        Raises
        ------
        UsageError
            If there is no such revision.
        AccessError, SourceError
            If the Hub refuses or cannot be reached.
        """
        with self._commit_lock:
            if self._commit is None:
                self._commit = self._resolve()
            return self._commit

    def identity(self) -> dict[str, str]:
        """``kind``, ``location`` (the repository) and ``revision`` (the commit)."""
        return {"kind": "hub", "location": self._repo_id, "revision": self.commit}

    def list_volumes(self, split: str) -> list[SampleRef]:
        """Every volume of the split, in natural order of the paths."""
        looked_at: list[str] = []
        for globs in self.data_set.alternatives(split):
            refs: dict[str, SampleRef] = {}
            for folder in folders_of(globs):
                place = "/".join(filter(None, (self.data_set.layout.root, folder)))
                looked_at.append(place or "the repository")
                with contextlib.suppress(NotFoundError):
                    refs |= self._refs_below(place, globs)
            if refs:
                self.listed_split = split
                kept = without_strays(self._repo_id, list(refs.values()), globs)
                return sorted(kept, key=lambda ref: natural_key(ref.path))
        raise UsageError(
            f"{self._repo_id} has no volume of the split {split!r} at {self.commit[:12]}; wanted "
            f"{', '.join(VOLUME_SUFFIXES)} files below {' or '.join(looked_at)}, as "
            f"{self.data_set.name} has them: for another data set pass --dataset with its "
            f"description, which `ctgpu describe --repo-id {self._repo_id}` writes"
        )

    def list_files(self) -> dict[str, int]:
        """Paths of all files of the repository, and their sizes in bytes.

        Raises
        ------
        UsageError, AccessError, SourceError
            As :meth:`list_volumes`.
        """
        entries = (entry for entry in self._list_tree("") if entry.get("type") == "file")
        return {str(entry["path"]): _size_bytes(entry) for entry in entries}

    def _refs_below(self, folder: str, globs: tuple[str, ...]) -> dict[str, SampleRef]:
        return {
            entry["path"]: self._ref(entry, found.key)
            for entry in self._list_tree(folder)
            if _is_volume(entry)
            and (found := self.data_set.volume(entry["path"], globs)) is not None
        }

    def _ref(self, entry: dict[str, Any], key: str | None) -> SampleRef:
        path, size_bytes = entry["path"], _size_bytes(entry)
        oid = (entry.get("lfs") or {}).get("oid")
        checksum = f"sha256:{oid}" if isinstance(oid, str) and len(oid) == 64 else None
        return SampleRef.of_file(path, size_bytes, checksum, self.data_set.provenance(path), key)

    def find_tables(self, split: str) -> None:
        """Nothing: tables have their places."""

    def read_table(self, *names: str) -> tuple[str, bytes] | None:
        """The first of these small files that exists, by path, and its bytes; else None."""
        for name in names:
            try:
                return name, self._client.get_bytes(self._file_url(name))
            except NotFoundError:
                continue
        return None

    def fetch(self, ref: SampleRef, allocate: Allocate) -> Fetched:
        """The bytes of one volume, checked, in an allocated (or spooled) buffer."""
        algorithm, _, checksum = (ref.checksum or "").partition(":")
        buffer = (self._spool.acquire if self._spool else allocate)(ref.size_bytes)
        with buffer.released_on_error():
            self._client.download(
                self._file_url(ref.path),
                memoryview(buffer.bytes.data),
                name=ref.path,
                sha256=checksum if algorithm == "sha256" else None,
                probe_url=self._revision_url(self.commit),
            )
        return Fetched(ref.path, buffer, self.data_set.arrays)

    def _fetch_file(self, path: str, allocate: Allocate) -> Fetched | None:
        try:
            content = self._client.get_bytes(self._file_url(path))
        except NotFoundError:
            return None
        buffer = allocate(len(content))
        buffer.bytes[:] = memoryview(content)
        return Fetched(path, buffer, self.data_set.arrays)

    def close(self) -> None:
        """Break off all transfers and close all connections."""
        self._client.close()

    def _resolve(self) -> str:
        if re.fullmatch(r"[0-9a-f]{40}", self._asked_revision):
            return self._asked_revision
        try:
            answer, _ = self._client.get_json(
                self._revision_url(self._asked_revision), attempts=_FIRST_CONTACT_ATTEMPTS
            )
        except NotFoundError:
            raise UsageError(
                f"{self._repo_id} has no revision {self._asked_revision!r}; "
                "wanted a branch, a tag or a whole commit hash"
            ) from None
        commit = answer.get("sha") if isinstance(answer, dict) else None
        if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{40,64}", commit):
            raise SourceError(f"the Hub named no commit for {self._repo_id}; check HF_ENDPOINT")
        return commit

    def _list_tree(self, folder: str) -> list[dict[str, Any]]:
        place = f"/{quote(folder, safe='')}" if folder else ""
        url = (
            f"{self._endpoint}/api/datasets/{self._repo_id}/tree/{self.commit}{place}"
            "?recursive=true&expand=false"
        )
        entries: dict[Any, dict[str, Any]] = {}
        for _ in range(_MOST_PAGES):
            page, following = self._client.get_json(url)
            if not isinstance(page, list) or not all(isinstance(entry, dict) for entry in page):
                raise SourceError(
                    f"the Hub answered with no listing of {folder or self._repo_id}; "
                    "check HF_ENDPOINT"
                )
            before = len(entries)
            entries |= {str(entry.get("path")): entry for entry in page}
            if following is None:
                return list(entries.values())
            if len(entries) == before:
                break
            url = following
        raise SourceError(
            f"the Hub's listing of {folder or self._repo_id} does not end: {len(entries)} entries, "
            "and then pages that bring nothing new, or too many pages; check HF_ENDPOINT"
        )

    def _revision_url(self, revision: str) -> str:
        return f"{self._endpoint}/api/datasets/{self._repo_id}/revision/{quote(revision, safe='')}"

    def _file_url(self, path: str) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(
            self._repo_id,
            path,
            repo_type="dataset",
            revision=self.commit,
            endpoint=self._endpoint,
        )


def account_of(token: str | Literal[False] | None, endpoint: str | None) -> tuple[str | None, str]:
    """Access token and address of the Hub, from this process's environment where not given.

    Raises
    ------
    UsageError
        If the address is none.
    """
    address = hub_address(endpoint)
    from huggingface_hub import constants, get_token

    if token is None and not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        token = get_token()
    return token or None, address


def is_offline() -> bool:
    """Whether ``HF_HUB_OFFLINE`` forbids to ask the Hub, now and not when it was imported."""
    from huggingface_hub import constants

    return os.environ.get("HF_HUB_OFFLINE", "").upper() in constants.ENV_VARS_TRUE_VALUES


def hub_address(endpoint: str | None = None) -> str:
    """Address of the Hub without a slash at its end; ``HF_ENDPOINT`` or huggingface.co by default.

    Raises
    ------
    UsageError
        If it is none.
    """
    # The variable counts in any case: where it is no address, huggingface_hub cannot be imported.
    address = DEFAULT_ENDPOINT
    for stated in (os.environ.get("HF_ENDPOINT"), endpoint):
        if stated and (trimmed := stated.strip().rstrip("/")):
            address = trimmed
            _require_address(address)
    return address


def _require_address(text: str) -> None:
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        shown = re.sub(r"//[^/]*@", "//…@", text)  # without an account
        raise UsageError(
            f"HF_ENDPOINT is {shown!r}, which is not an address that starts with https:// or "
            "http:// and names a host, with or without a port; correct or unset it"
        )


def _is_volume(entry: dict[str, Any]) -> bool:
    path = entry.get("path")
    return (
        entry.get("type") == "file"
        and isinstance(path, str)
        and path.lower().endswith(VOLUME_SUFFIXES)
        and "/." not in f"/{path}"
    )


def _size_bytes(entry: dict[str, Any]) -> int:
    try:
        size_bytes = int((entry.get("lfs") or {}).get("size", entry["size"]))
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        size_bytes = -1
    if size_bytes < 0:
        raise SourceError(f"the Hub lists {entry['path']!r} without a size; check HF_ENDPOINT")
    return size_bytes
