"""One training step: what it minimises, which parts of the model it trains, and its gradient."""
