"""Parameter groups and the learning rate as a closed form."""

from frostline.optim.fastest import fastest, step_in_few_groups
from frostline.optim.groups import parameter_groups, undecayed
from frostline.optim.rate import LearningRates, curve_factor, learning_rate, warmup_factor

__all__ = [
    "LearningRates",
    "curve_factor",
    "fastest",
    "learning_rate",
    "parameter_groups",
    "step_in_few_groups",
    "undecayed",
    "warmup_factor",
]
