"""A data set for MONAI's pipelines: dictionaries of MetaTensors that lie where their scans lie.

>>> from ctgpu.loading.monai import MonaiDataset                            # doctest: +SKIP
>>> dataset = MonaiDataset("shards", transform=[RandFlipd("image", 0.5)])   # doctest: +SKIP
>>> loader = monai.data.DataLoader(dataset, 2, num_workers=4)               # doctest: +SKIP
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ctgpu.arguments import shown
from ctgpu.buffers import allocate_pages
from ctgpu.errors import DeviceError, UsageError
from ctgpu.installation import install_command
from ctgpu.loading.catalogue import Named
from ctgpu.loading.dataset import VolumeDataset
from ctgpu.loading.opening import open_samples, samples_to_load
from ctgpu.loading.region import to_hwd
from ctgpu.loading.window import Scaling, Window, apply_scalings, chosen_scalings
from ctgpu.volume.on_scan import Geometry
from ctgpu.volume.stored import numpy_dtype, tensor_of

try:
    import torch
    from monai.data import Dataset, MetaTensor, get_track_meta
except ImportError as error:
    raise DeviceError(
        f"ctgpu.loading.monai needs MONAI: install it with `{install_command('monai')}`; "
        "make_loader and VolumeDataset do without"
    ) from error

if TYPE_CHECKING:
    from torch.utils.data import Subset

log = logging.getLogger(__name__)

Transform = Callable[..., Any]


class MonaiDataset(Dataset):  # type: ignore[misc]
    """The samples of a data set as MONAI's dictionary transforms take them, map style.

    It stands where a script has ``PersistentDataset`` or ``CacheDataset`` of files: an item is what
    ``LoadImaged`` and ``EnsureChannelFirstd`` would have made of the preprocessed scan.

    ================  ==============================================================================
    ``image``         MetaTensor (C, H, W, D) with the affine of its voxels, RAS+ millimetres
    ``mask``          MetaTensor (1, H, W, D) likewise, where the data set has masks: uint8, or
                      int32 where uint16 is stored
    ``label``         Tensor (classes,), float32; NaN where the tables have none
    ``report``        Text
    ``study_id``      Text
    ================  ==============================================================================

    The image's ``meta`` has the scan's own affine and shape, as ``original_affine`` and
    ``spatial_shape``, by which ``SaveImaged(resample=True)`` puts predictions onto the grid of the
    scan.  ``filename_or_obj``, by which it names files, is the sample's key with ``.nii.gz``.
    ``affine_source`` is that of :class:`ctgpu.Geometry`: where it is ``"spacing"`` the scan states
    no affine, so that sizes are right and directions are not known; a warning in the log says so.

    Where ``monai.data.set_track_meta(False)`` holds, images are plain tensors.

    Parameters
    ----------
    dataset : VolumeDataset, torch.utils.data.Subset of one, path or list of path
        The samples, as :func:`ctgpu.loading.make_loader` takes them.
    transform : callable or sequence of callable, optional
        As every data set of MONAI takes it; applied to each item.
    image_key, label_key, mask_key : str
        What the transforms call them.
    window, windows : optional
        As :func:`ctgpu.loading.make_loader` takes them: one channel, or a channel each.
    dtype : torch.dtype or None
        Of the image: any floating type, as MONAI's transforms take float32; None for that of
        :func:`ctgpu.loading.make_loader`'s batches.
    labelled_only : bool
        Leave out the samples that have no label row.

    Raises
    ------
    UsageError, MismatchError, StorageError
        If an argument is outside its domain, or the data set cannot be opened.
    FetchError, StorageError
        From an item, as :meth:`ctgpu.loading.VolumeDataset.__getitem__`.
    """

    def __init__(
        self,
        dataset: VolumeDataset | Subset[Any] | Named | Sequence[Named],
        transform: Sequence[Transform] | Transform | None = None,
        *,
        image_key: str = "image",
        label_key: str = "label",
        mask_key: str = "mask",
        window: Window | None = None,
        windows: Sequence[Window] | None = None,
        dtype: torch.dtype | None = torch.float32,
        labelled_only: bool = False,
    ) -> None:
        samples = samples_to_load(open_samples(dataset), labelled_only=labelled_only)
        mask_keys = () if samples.masks is None else (mask_key,)
        keys = (image_key, label_key, "report", "study_id", *mask_keys)
        if len(set(keys)) < len(keys):
            raise UsageError(
                f"image_key is {image_key!r} and label_key {label_key!r}"
                f"{f' and mask_key {mask_key!r}' if mask_keys else ''}; each entry of an item "
                "needs a key of its own, and report and study_id have theirs"
            )
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise UsageError(
                f"dtype is {shown(dtype)}; it is a floating torch.dtype, or None for the type that "
                "make_loader gives"
            )
        scalings = chosen_scalings(samples.spec, window, windows)
        super().__init__(_Items(samples, keys, scalings, dtype), transform)

    def __getitem__(self, index: int | str | slice | Sequence[int]) -> Any:
        """An item by number or study id; of a slice or several numbers, a torch ``Subset``."""
        if isinstance(index, str):  # to MONAI a sequence like any other
            return self._transform(index)
        return super().__getitem__(index)


class _Items(Sequence[Any]):
    """The items before any transform; MONAI looks for random states in what has a ``__dict__``."""

    __slots__ = ("_dataset", "_dtype", "_keys", "_scalings", "_warned")

    def __init__(
        self,
        dataset: VolumeDataset,
        keys: tuple[str, ...],
        scalings: tuple[Scaling, ...],
        dtype: torch.dtype | None,
    ) -> None:
        self._dataset = dataset
        self._keys = keys
        self._scalings = scalings
        self._dtype = dtype
        self._warned = False

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: Any) -> Any:
        dataset, spec = self._dataset, self._dataset.spec
        number = dataset.number_of(index)
        # In huge pages where the system grants them: fresh ones of 4 KiB take longer than reading.
        memory = allocate_pages(spec.size_bytes)
        stored = np.ndarray(spec.stored_shape, numpy_dtype(spec.dtype), buffer=memory.data)
        mask = self._room_for_mask()
        labels, report = dataset.read_into(number, stored, mask=mask)
        images = [self._channels(stored)]
        if mask is not None:
            # torch can do little with uint16.
            numbers = mask if mask.itemsize == 1 else mask.astype(np.int32)
            images.append(torch.from_numpy(numbers)[None])
        images = [to_hwd(one, spec.layout) for one in images]
        if get_track_meta():
            meta = self._meta(number)
            images = [MetaTensor(one, meta=copy.deepcopy(meta)) for one in images]
        image, *masks = images
        values = (image, torch.from_numpy(labels), report, dataset.study_ids[number], *masks)
        return dict(zip(self._keys, values, strict=True))

    def _room_for_mask(self) -> npt.NDArray[Any] | None:
        masks, spec = self._dataset.masks, self._dataset.spec
        if masks is None:
            return None
        memory = allocate_pages(masks.size_bytes(spec))
        return np.ndarray(spec.stored_shape, masks.numpy_dtype, buffer=memory.data)

    def _channels(self, stored: npt.NDArray[Any]) -> torch.Tensor:
        """(C, stored axes)."""
        numbers = tensor_of(stored, self._dataset.spec.dtype)[None]
        if not self._scalings and self._dtype in (None, numbers.dtype):
            return numbers
        dtype = self._dtype or getattr(torch, self._scalings[0].dtype)
        shape = (max(1, len(self._scalings)), *stored.shape)
        size_bytes = dtype.itemsize * math.prod(shape)
        out = torch.from_numpy(allocate_pages(size_bytes)[:size_bytes]).view(dtype).view(shape)
        if self._scalings:
            apply_scalings(numbers, self._scalings, out[None])
            return out
        return out.copy_(numbers)

    def _meta(self, number: int) -> dict[str, Any]:
        """What ``LoadImaged`` would say of the scan, and where the output's voxels lie."""
        _, entry = self._dataset.locate(number)
        geometry = Geometry.of_metadata(self._dataset.metadata(number))
        if geometry.affine_source == "spacing" and not self._warned:
            self._warned = True
            log.warning(
                "%s was made of a scan that states no affine: its spacing is right, and which way "
                "its axes lead is not known, so Orientationd would turn it by guesswork; build "
                "with --assume-orientation where all scans lie one way",
                entry.study_id,
            )
        return {
            "filename_or_obj": f"{entry.key}.nii.gz",
            "affine": torch.from_numpy(geometry.affine),
            "original_affine": geometry.source_affine,
            "spatial_shape": np.array(geometry.source_shape),
            "original_channel_dim": 0,
            "space": "RAS",
            "affine_source": geometry.affine_source,
        }
