"""The loop: losses, schedules, checkpoints, resume."""
