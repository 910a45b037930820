"""Trackers that are told of a study: MLflow, TensorBoard."""
