"""Where checkpoints are kept: the contract in `base`, and the stores that fulfil it."""
