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
from frostline.reports.picture_sheet import PictureSheet, SheetRow, picture_sheet
from frostline.reports.thaw_plot import ThawPlot, thaw_plot

__all__ = [
    "THUMBNAIL",
    "AuditPage",
    "PageFinding",
    "PagePicture",
    "PageSection",
    "PageTable",
    "PictureSheet",
    "SheetRow",
    "ThawPlot",
    "audit_page",
    "picture_sheet",
    "require_page",
    "thaw_plot",
]
