"""Parameter groups and the learning rate as a closed form."""

from frostline.optim.groups import parameter_groups, undecayed
from frostline.optim.rate import curve_factor, learning_rate, set_learning_rates, warmup_factor

__all__ = ["curve_factor", "learning_rate", "parameter_groups", "set_learning_rates", "undecayed", "warmup_factor"]
