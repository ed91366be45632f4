"""The two encoders."""
