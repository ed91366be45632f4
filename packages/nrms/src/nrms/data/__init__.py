"""Readers: click logs and catalogues → typed rows → token arrays → batches."""
