"""Read shards with MONAI's transforms, and write what was found onto the grids of the scans.

    python examples/monai_on_scan.py demo/shards masks

Needs the extra `monai`.  A batch's images are MetaTensors: whatever a transform does to their
voxels, their affine goes along, so that what is found in a crop is written where it lies.
"""

import argparse

import numpy as np

from ctgpu import CtgpuError
from ctgpu.loading import VolumeDataset

try:
    from monai.data import DataLoader, decollate_batch
    from monai.transforms import Compose, Orientationd, SaveImage, SpatialCropd
except ImportError:
    raise SystemExit("monai_on_scan.py needs MONAI: pip install 'ctgpu[monai]'") from None
from ctgpu.loading.monai import MonaiDataset

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("output")
    options = parser.parse_args()
    try:
        scans = VolumeDataset(options.folder)
        middle = [(size // 8, size - size // 8) for size in scans.spec.shape_hwd]
        starts, ends = zip(*middle, strict=True)
        crop = SpatialCropd("image", roi_start=starts, roi_end=ends)
        transforms = Compose([crop, Orientationd("image", axcodes="LPS")])
        # Whatever the shards hold: from -1 at -1000 HU to 1 at 1000 HU.
        dataset = MonaiDataset(scans, transforms, window=(-1000, 1000))
    except CtgpuError as error:
        parser.error(str(error))
    files = {"output_postfix": "air", "output_dtype": np.uint8, "separate_folder": False}
    # Onto the scan's own grid; beyond the crop there is nothing.
    onto = {"resample": True, "mode": "nearest", "padding_mode": "zeros"}
    save = SaveImage(options.output, **onto, **files)
    for batch in DataLoader(dataset, batch_size=2):
        image = batch["image"]  # (2, 1, X, Y, Z) float32; to the left, the back, the head
        # Where a model would be: what is below -500 HU, as a MetaTensor with the same affines.
        air = (image < -0.5).float()
        for mask, study_id in zip(decollate_batch(air), batch["study_id"], strict=True):
            save(mask)
            print(f"{study_id}: {mask.sum() * mask.pixdim.prod() / 1000:.0f} ml of air")
