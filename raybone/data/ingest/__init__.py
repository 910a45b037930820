"""From files of scans and annotations to scans with counts."""
