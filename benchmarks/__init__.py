"""Both sides of every comparison of speed."""
