"""The loops: steps, schedules, checkpoints, resume."""

from rsr_net.training.fit import fit
from rsr_net.training.seed import train_refinement

__all__ = ["fit", "train_refinement"]
