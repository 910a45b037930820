"""Raw scans and annotations of any kind, on their way into a dataset."""
