"""The brain of a search: space, samplers, race and journal. Plain Python, no Ray, no torch."""
