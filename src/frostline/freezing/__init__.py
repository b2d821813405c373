"""What learns, when, and how modules behave meanwhile: selectors, schedule, application. Knows no Trainer."""

from frostline.freezing.apply import apply_phase, assert_modes, module_modes
from frostline.freezing.describe import DepthRow, Description, PhaseRow, describe
from frostline.freezing.layers import norm_parameters
from frostline.freezing.partition import check_partition
from frostline.freezing.phase import Phase, PhaseLr
from frostline.freezing.rates import lr_factor
from frostline.freezing.schedule import FreezeSchedule
from frostline.freezing.selectors import KNOWN_FORMS, select

__all__ = [
    "KNOWN_FORMS",
    "DepthRow",
    "Description",
    "FreezeSchedule",
    "Phase",
    "PhaseLr",
    "PhaseRow",
    "apply_phase",
    "assert_modes",
    "check_partition",
    "describe",
    "lr_factor",
    "module_modes",
    "norm_parameters",
    "select",
]
