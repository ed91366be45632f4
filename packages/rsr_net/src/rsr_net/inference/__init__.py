"""The object a user holds: Summarizer."""
