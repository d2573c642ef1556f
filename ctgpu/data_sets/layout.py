"""How the folders of a data set's splits are told from others, wherever a copy of it lies."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ctgpu.data_sets.description import Description
from ctgpu.data_sets.globs import folder_of


class SplitFolders:
    """The folders of a data set's splits.

    Parameters
    ----------
    data_set : Description
        The data set.
    """

    def __init__(self, data_set: Description) -> None:
        self._data_set = data_set
        self._layout = data_set.layout
        self._splits = {folder: split for split in data_set.splits for folder in self.of(split)}

    def of(self, split: str) -> tuple[str, ...]:
        """Folders of a split's volumes below the data set's root, best first."""
        alternatives = self._data_set.alternatives(split)
        return tuple(dict.fromkeys(folder_of(glob) for globs in alternatives for glob in globs))

    def among(self, names: Collection[str], *, parent: str, at_top: bool) -> list[str]:
        """Which sub-folders of a folder hold splits.

        The telling ones do wherever they are.  The others, whose names other data sets have too,
        do at the top of a source, in the data set's root, beside another folder of a split, and
        beside one of the data set's companions.

        Parameters
        ----------
        names : collection of str
            The sub-folders.
        parent : str
            Name of the folder they are in.
        at_top : bool
            Whether that is the source itself.
        """
        found = [name for name in self._splits if name in names]
        if not found:
            return []
        has_companion = not set(self._layout.companions).isdisjoint(names)
        if at_top or parent == self._layout.root or len(found) > 1 or has_companion:
            return found
        return [name for name in found if name in self._layout.telling]

    def split_of(self, folders: Sequence[str]) -> str | None:
        """The split that a path lies in by the names of its folders, the innermost first."""
        for place in reversed(range(len(folders))):
            split = self._splits.get(folders[place])
            is_telling = folders[place] in self._layout.telling
            is_in_root = place > 0 and folders[place - 1] == self._layout.root
            if split is not None and (is_telling or is_in_root):
                return split
        return None
