"""Parameter groups and the learning rate as a closed form."""

from frostline.optim.fastest import fastest, step_in_few_groups
from frostline.optim.groups import parameter_groups, undecayed
from frostline.optim.rate import LearningRates, curve_factor, learning_rate, set_learning_rates, warmup_factor

__all__ = [
    "LearningRates",
    "curve_factor",
    "fastest",
    "learning_rate",
    "parameter_groups",
    "set_learning_rates",
    "step_in_few_groups",
    "undecayed",
    "warmup_factor",
]
