"""Where a run is logged to: W&B and the like in the background, and always ``metrics.csv``."""
