"""Video files to batches of latents: the rooms in the order of the data."""
