"""Runs composed from configuration groups: apps, where they run (envs) and in how many processes (drivers)."""
