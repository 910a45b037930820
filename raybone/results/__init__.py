"""What a study left: its folder, its ranking, its pages."""
