"""Detectors: a file each, on shared parts."""
