"""What the package trains on when it is given nothing: keyed facts from a seed, and tiny models."""
