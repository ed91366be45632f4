"""The loop: steps, schedules, checkpoints, resume."""
