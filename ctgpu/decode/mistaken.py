"""Recognises, by its first bytes, a file that was mistaken for a volume or a table."""

from __future__ import annotations

import codecs

#: Bytes that are looked at.
HEAD_BYTES = 512

_BYTE_ORDER_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_LFS = b"version https://git-lfs.github.com/spec/"
_DICOM_OFFSET = 128


def mistaken_for(head: bytes) -> str | None:
    """What a file is by its first bytes, and the way to the one that was meant; None if unknown.

    Parameters
    ----------
    head : bytes
        The first :data:`HEAD_BYTES` of the file, or all of it where it has less.

    Returns
    -------
    str or None
        The end of a sentence that begins with the file's name.
    """
    if not head:
        return "is empty: fetch it again"
    text = _text(head)
    if text.startswith(_LFS):
        return "is a Git LFS pointer and not the file: run `git lfs pull` where it was cloned"
    if text.startswith(b"/annex/objects/") or b"/.git/annex/objects/" in text:
        return "is a git-annex pointer and not the file: run `git annex get` where it was cloned"
    if text.startswith((b"<!doctype html", b"<html")):
        return (
            "is an HTML page, which a server sent in place of the file: fetch it again, logged in "
            "if it asks for that"
        )
    if text.startswith(b"<?xml"):
        return "is an XML document, which servers send as an error: fetch the file again"
    if head[_DICOM_OFFSET : _DICOM_OFFSET + 4] == b"DICM":
        return "is a DICOM file: pass the folder of its series as a source of its own"
    return None


def _text(head: bytes) -> bytes:
    """The beginning of a text as lower-case ASCII, whatever Unicode encoding it has."""
    for mark in _BYTE_ORDER_MARKS:
        head = head.removeprefix(mark)
    return head.replace(b"\0", b"").lstrip().lower()
