"""What a run looks like, for people: figures and pages."""

from frostline.reports.audit_page import (
    THUMBNAIL,
    AuditPage,
    PageFinding,
    PagePicture,
    PageSection,
    PageTable,
    audit_page,
    require_page,
)
from frostline.reports.comparison_plot import ComparisonPlot, PlottedRow, comparison_plot
from frostline.reports.picture_sheet import PictureSheet, SheetRow, picture_sheet
from frostline.reports.probe_plot import ProbePanel, ProbePlot, probe_plot
from frostline.reports.thaw_plot import ThawPlot, thaw_plot

__all__ = [
    "THUMBNAIL",
    "AuditPage",
    "ComparisonPlot",
    "PageFinding",
    "PagePicture",
    "PageSection",
    "PageTable",
    "PictureSheet",
    "PlottedRow",
    "ProbePanel",
    "ProbePlot",
    "SheetRow",
    "ThawPlot",
    "audit_page",
    "comparison_plot",
    "picture_sheet",
    "probe_plot",
    "require_page",
    "thaw_plot",
]
