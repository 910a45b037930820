"""Loss functions, one file a family."""
