"""A study: its YAML, its search space, its rules."""
