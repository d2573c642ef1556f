"""What CHANGELOG.md says of a version, for its release: ``release_notes.py v0.1.0``.

The tag must be the version of pyproject.toml, and the section must have a date.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
#: Links to files, which lead nowhere from the page of a release.
RELATIVE = re.compile(r"(?<=\]\()(?![a-z]+:|#)(?=[^)\s]+\))")


def release_notes(tag: str, project: str, changelog: str) -> str:
    """The section of one version, with its links leading into the tagged tree.

    Parameters
    ----------
    tag : str
        Such as ``v0.1.0``.
    project, changelog : str
        What is in pyproject.toml and in CHANGELOG.md.

    Raises
    ------
    ValueError
        If the tag is of another version, or the section is missing or empty.
    """
    stated = tomllib.loads(project)["project"]
    version, sources = stated["version"], stated["urls"]["Source"]
    if tag != f"v{version}":
        raise ValueError(
            f"the tag is {tag} and pyproject.toml has version {version}: tag v{version}, or set "
            "the version in a commit and tag that"
        )
    parts = re.split(r"^## +(.+?) *$", changelog, flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    title = re.compile(rf"\[?{re.escape(version)}\]? - \d{{4}}-\d\d-\d\d")
    found = [text.strip() for name, text in sections.items() if title.fullmatch(name)]
    if not found:
        raise ValueError(
            f"CHANGELOG.md has no section `## {version} - YYYY-MM-DD`: give the changes under "
            "`## Unreleased` that title, and begin a new one above it"
        )
    if not found[0]:
        raise ValueError(f"CHANGELOG.md says nothing of {version}: write what has changed")
    return RELATIVE.sub(f"{sources}/blob/{tag}/", found[0]) + "\n"


def main(tag: str) -> str | None:
    """Print them; what is wrong goes to `sys.exit`."""
    try:
        notes = release_notes(
            tag,
            (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"),
            (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8"),
        )
    except ValueError as error:
        return str(error)
    print(notes, end="")
    return None


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("say which tag: release_notes.py v0.1.0")
    sys.exit(main(sys.argv[1]))
