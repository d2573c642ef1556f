"""What ctgpu is held against: the old way, and other libraries."""
