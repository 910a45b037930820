"""Schedulers replayed on recorded learning curves."""
