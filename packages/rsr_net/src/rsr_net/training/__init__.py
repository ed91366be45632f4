"""The loops: steps, schedules, checkpoints, resume."""
