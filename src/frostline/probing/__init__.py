"""Many linear heads on the features of a frozen backbone, and what they are compared with."""

from frostline.probing.heads import Head, Linear, Scale, Scores, TrainedHead, check_grid, grid

__all__ = ["Head", "Linear", "Scale", "Scores", "TrainedHead", "check_grid", "grid"]
