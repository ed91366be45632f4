"""The loops: steps, schedules, checkpoints, resume."""

from rsr_net.training.fit import fit
from rsr_net.training.seed import fit_recursion, train_refinement
from rsr_net.training.selector import fit_selector

__all__ = ["fit", "fit_recursion", "fit_selector", "train_refinement"]
