"""What a run looks like, for people: figures and pages."""

from frostline.reports.audit_page import (
    THUMBNAIL,
    AuditPage,
    PageFinding,
    PagePicture,
    PageSection,
    audit_page,
)
from frostline.reports.charts import (
    Axis,
    Dot,
    Line,
    Thread,
    line_chart,
    parallel_chart,
    reliability_chart,
    scatter_chart,
)
from frostline.reports.comparison_plot import ComparisonPlot, PlottedRow, comparison_plot
from frostline.reports.pages import PAGE_BYTES, PageTable
from frostline.reports.picture_sheet import PictureSheet, SheetRow, picture_sheet
from frostline.reports.probe_plot import ProbePanel, ProbePlot, probe_plot
from frostline.reports.run_page import (
    MATRIX_CLASSES,
    CellPictures,
    Confusion,
    Judged,
    RunPage,
    Shown,
    run_page,
)
from frostline.reports.sweep_page import SweepPage, SweepRun, sweep_page
from frostline.reports.thaw_plot import ThawPlot, thaw_plot
from frostline.reports.thumbnails import heated, thumbnail
from frostline.reports.wise_plot import WisePlot, wise_plot

__all__ = [
    "MATRIX_CLASSES",
    "PAGE_BYTES",
    "THUMBNAIL",
    "AuditPage",
    "Axis",
    "CellPictures",
    "ComparisonPlot",
    "Confusion",
    "Dot",
    "Judged",
    "Line",
    "PageFinding",
    "PagePicture",
    "PageSection",
    "PageTable",
    "PictureSheet",
    "PlottedRow",
    "ProbePanel",
    "ProbePlot",
    "RunPage",
    "SheetRow",
    "Shown",
    "SweepPage",
    "SweepRun",
    "ThawPlot",
    "Thread",
    "WisePlot",
    "audit_page",
    "comparison_plot",
    "heated",
    "line_chart",
    "parallel_chart",
    "picture_sheet",
    "probe_plot",
    "reliability_chart",
    "run_page",
    "scatter_chart",
    "sweep_page",
    "thaw_plot",
    "thumbnail",
    "wise_plot",
]
