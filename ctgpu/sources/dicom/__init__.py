"""Series of DICOM in a folder; nothing that identifies a patient leaves it."""
