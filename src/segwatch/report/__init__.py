"""What people look at: one self-contained HTML page of a metric's predictions."""

from segwatch.report.health import ModelFacts
from segwatch.report.page import render_report

__all__ = ["ModelFacts", "render_report"]
