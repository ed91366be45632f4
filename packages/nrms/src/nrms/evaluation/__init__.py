"""Metrics by the MIND conventions, baselines, reports."""
