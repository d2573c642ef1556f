"""Tables as text: their encoding, and what is no text at all."""

from __future__ import annotations

import codecs
import io
from typing import TextIO

from ctgpu.decode.mistaken import HEAD_BYTES, mistaken_for

# UTF-32 goes first: its little-endian mark begins with that of UTF-16.
_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_CONTROLS = bytes(set(range(0x20)) - set(b"\t\n\v\f\r"))


def encoding_of(content: bytes) -> str:
    """The encoding that a text's byte order mark names; UTF-8 where it has none, or its own."""
    return next((name for mark, name in _ENCODINGS.items() if content.startswith(mark)), "UTF-8")


def text_of(content: bytes, errors: str) -> TextIO:
    """Text decoded as it is read: a table of reports is too large to hold twice.

    Parameters
    ----------
    content : bytes
        UTF-8, or UTF-16 or UTF-32 with a byte order mark, as Excel writes "Unicode text".
    errors : {"strict", "replace"}
        What to do about bytes that are none.
    """
    encoding = encoding_of(content)
    encoding = "utf-8-sig" if encoding == "UTF-8" else encoding
    return io.TextIOWrapper(io.BytesIO(content), encoding, errors, newline="")


def no_text(content: bytes) -> str | None:
    """What a file is instead of text, and the way out; None where it is text.

    Returns
    -------
    str or None
        The end of a sentence that begins with the file's name.
    """
    head = content[:HEAD_BYTES]
    if (found := mistaken_for(head)) is not None:
        return found
    if encoding_of(head) == "UTF-8" and head.translate(None, _CONTROLS) != head:
        return "is no text but binary data: save it as text in UTF-8, a table as CSV"
    return None
