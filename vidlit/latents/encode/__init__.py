"""Clips and captions to what a store holds: what is missing, who decodes and encodes it, on which engine."""
