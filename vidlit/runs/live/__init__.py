"""A run that is going on: what it prints, and what is asked of it."""
