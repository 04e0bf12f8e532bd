"""Copies and lost diversity on runs that really copy, really collapse, or do neither."""
