"""A dataset for other tools, with its patient folds."""
