"""Prompts to videos: reading prompts, sampling, writing files, auditing what was made."""
