"""Training and evaluation of one fold."""
