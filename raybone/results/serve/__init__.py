"""A study in a browser while it runs, and news of it for other programs."""
