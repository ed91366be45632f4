"""What the five systems share: caches, metrics, encoders, run folders and one command-line grammar."""
