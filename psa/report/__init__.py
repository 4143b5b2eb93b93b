"""What a run looks like to a reader: an HTML page that needs no network, and the figures beside it."""

from psa.report.content import Curves, MetricRow, ReportContent, RunsTable, SceneView, Verdict
from psa.report.figures import curves_figure, decomposition_figure
from psa.report.page import render_report, write_report

__all__ = [
    "Curves",
    "MetricRow",
    "ReportContent",
    "RunsTable",
    "SceneView",
    "Verdict",
    "curves_figure",
    "decomposition_figure",
    "render_report",
    "write_report",
]
