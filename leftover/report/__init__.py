"""A run folder -> results.json, report.md and report.html."""

from leftover.report.write import write_report

__all__ = ["write_report"]
