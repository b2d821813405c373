"""What a run looks like, for people: figures."""

from frostline.reports.thaw_plot import ThawPlot, thaw_plot

__all__ = ["ThawPlot", "thaw_plot"]
