"""One volume: where its voxels lie, what they mean, where each output voxel comes from."""
