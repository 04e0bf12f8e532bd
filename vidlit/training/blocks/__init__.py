"""The transformer's repeated blocks, where nearly all of its weights, activations and time are: how they are run."""
