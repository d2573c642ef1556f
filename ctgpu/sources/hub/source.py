"""Volumes in a data set on the Hugging Face Hub, or on a server that speaks its protocol."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlsplit

from ctgpu.buffers import Allocate
from ctgpu.errors import SourceError, UsageError
from ctgpu.shards.names import natural_key
from ctgpu.sources.base import Source
from ctgpu.sources.ct_rate import provenance_of, split_folders
from ctgpu.sources.fetched import Fetched
from ctgpu.sources.hub.client import DEFAULT_ENDPOINT, HubClient, NotFoundError
from ctgpu.sources.hub.spool import SpoolPool
from ctgpu.sources.hub.transfer import Patience
from ctgpu.volume.ref import VOLUME_SUFFIXES, SampleRef, Split

# The first contact fails sooner than the thousandth: nothing is lost yet, and someone is waiting.
_FIRST_CONTACT_ATTEMPTS = 6
# Ten million entries, as the Hub divides them.
_MOST_PAGES = 10_000


class HubSource(Source):
    """A data set on the Hub, pinned to one commit.

    Only the folder of the split asked for is listed, with sizes and checksums:
    ``dataset/{split}_fixed``, or ``dataset/{split}`` where that does not exist.  Volumes are
    streamed into the allocated buffer; what breaks off is taken up again where it broke off.

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
    ) -> None:
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

    def list_volumes(self, split: Split) -> list[SampleRef]:
        """Every volume of the split, in natural order of the paths."""
        for folder in split_folders(split):
            try:
                entries = self._list_tree(f"dataset/{folder}")
            except NotFoundError:
                continue
            refs = [_to_ref(entry) for entry in entries if _is_volume(entry)]
            if refs:
                self.listed_split = split
                return sorted(refs, key=lambda ref: natural_key(ref.path))
        raise UsageError(
            f"{self._repo_id} has no volume of the split {split!r} at {self.commit[:12]}; wanted "
            f"{', '.join(VOLUME_SUFFIXES)} files below dataset/{split}_fixed or dataset/{split}"
        )

    def find_tables(self, split: Split) -> None:
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
        return Fetched(ref.path, buffer)

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
        url = (
            f"{self._endpoint}/api/datasets/{self._repo_id}/tree/{self.commit}/"
            f"{quote(folder, safe='')}?recursive=true&expand=false"
        )
        entries: dict[Any, dict[str, Any]] = {}
        for _ in range(_MOST_PAGES):
            page, following = self._client.get_json(url)
            if not isinstance(page, list) or not all(isinstance(entry, dict) for entry in page):
                raise SourceError(
                    f"the Hub answered with no listing of {folder}; check HF_ENDPOINT"
                )
            before = len(entries)
            entries |= {str(entry.get("path")): entry for entry in page}
            if following is None:
                return list(entries.values())
            if len(entries) == before:
                break
            url = following
        raise SourceError(
            f"the Hub's listing of {folder} does not end: {len(entries)} entries, and then pages "
            "that bring nothing new, or too many pages; check HF_ENDPOINT"
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
        and not path.rsplit("/", 1)[-1].startswith(".")
    )


def _to_ref(entry: dict[str, Any]) -> SampleRef:
    lfs = entry.get("lfs") or {}
    try:
        size_bytes = int(lfs.get("size", entry["size"]))
        oid = lfs.get("oid")
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        size_bytes, oid = -1, None
    if size_bytes < 0:
        raise SourceError(f"the Hub lists {entry['path']!r} without a size; check HF_ENDPOINT")
    checksum = f"sha256:{oid}" if isinstance(oid, str) and len(oid) == 64 else None
    return SampleRef.of_file(entry["path"], size_bytes, checksum, provenance_of(entry["path"]))
