"""Scans and annotations: reading, the dataset folder, folds, loading, augmentation."""
