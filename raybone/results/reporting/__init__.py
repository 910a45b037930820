"""What guidelines of reporting ask of a paper, as far as a study knows it."""
