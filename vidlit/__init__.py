"""vidlit fine-tunes video diffusion transformers and stops before they overfit."""

__version__ = "0.1.0"
