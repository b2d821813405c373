"""What learns, when, and how modules behave meanwhile: selectors, schedule, application. Knows no Trainer."""

from frostline.freezing.apply import apply_phase, assert_modes, module_modes
from frostline.freezing.cost import Cost, Estimator, dragging, relative
from frostline.freezing.describe import DepthRow, Description, PhaseRow, describe
from frostline.freezing.layers import keeps_statistics, norm_parameters
from frostline.freezing.partition import check_partition
from frostline.freezing.phase import Phase, PhaseLr, Stage, Warmup
from frostline.freezing.progress import Decision, Progress, Transition
from frostline.freezing.rates import lr_factor
from frostline.freezing.schedule import FreezeSchedule, Position
from frostline.freezing.selectors import KNOWN_FORMS, select
from frostline.freezing.triggers import Validation

__all__ = [
    "KNOWN_FORMS",
    "Cost",
    "Decision",
    "DepthRow",
    "Description",
    "Estimator",
    "FreezeSchedule",
    "Phase",
    "PhaseLr",
    "PhaseRow",
    "Position",
    "Progress",
    "Stage",
    "Transition",
    "Validation",
    "Warmup",
    "apply_phase",
    "assert_modes",
    "check_partition",
    "describe",
    "dragging",
    "keeps_statistics",
    "lr_factor",
    "module_modes",
    "norm_parameters",
    "relative",
    "select",
]
