"""A winner taken home: bundles, predictions and what they are written as."""
