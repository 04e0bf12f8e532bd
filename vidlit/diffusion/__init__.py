"""Noising, the loss and generation: one mathematics for training, validation and samples."""
