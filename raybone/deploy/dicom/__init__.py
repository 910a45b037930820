"""Findings as DICOM objects beside their source: Segmentation, Structured Report."""
