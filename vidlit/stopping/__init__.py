"""Pure decisions: numbers in, a verdict with its reason and evidence out."""
