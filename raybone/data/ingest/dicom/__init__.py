"""DICOM objects as counts, with what their headers say."""
