"""Model families, the weight-free codec and adapters."""
