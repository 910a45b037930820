"""Classifiers: a file each, on shared parts."""
