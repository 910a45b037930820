"""Annotations of many formats, and which scan each of them means."""
