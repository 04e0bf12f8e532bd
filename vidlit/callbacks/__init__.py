"""Thin hooks: feed metrics, ask stopping, log, stop."""
