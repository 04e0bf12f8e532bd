"""Videos that show the same: near-duplicates of each other, and excerpts of longer ones."""
