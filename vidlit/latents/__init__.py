"""Clips to a store of latents and back to batches."""
