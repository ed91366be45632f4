"""The built-in click logs."""
