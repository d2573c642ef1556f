"""The DALI index of a shard: what ``wds2idx`` would write, made from the record instead of the tar.

Its first line is the version and the number of samples; then each sample has one line with four
words per member: extension, offset of the data, size, name.
"""

from __future__ import annotations

from ctgpu.shards.record import ShardRecord

VERSION = "v1.2"


def index_text(record: ShardRecord) -> bytes:
    """The content of the shard's ``.idx``."""
    lines = [f"{VERSION} {len(record.samples)}"]
    for sample in record.samples:
        lines.append(
            " ".join(
                f"{extension} {member.offset} {member.size_bytes} {sample.key}.{extension}"
                for extension, member in sample.members.items()
            )
        )
    return ("\n".join(lines) + "\n").encode()
