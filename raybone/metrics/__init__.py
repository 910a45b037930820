"""Metrics on plain arrays: boxes, masks, intervals."""
