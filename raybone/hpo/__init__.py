"""Which configuration trains next, and how far: plain Python, no torch, no Ray."""
