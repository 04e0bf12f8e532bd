"""A run on disk: its folder, its record, checkpoints, loggers, what is kept secret."""
