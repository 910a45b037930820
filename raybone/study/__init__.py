"""What a study is, and the studies that come with raybone."""
