"""Segmenters: a file each, on shared parts."""
