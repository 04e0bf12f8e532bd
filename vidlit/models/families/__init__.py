"""One file for each family of video diffusion transformers."""
