"""A run folder -> results.json, report.md and report.html."""

from leftover.report.write import result_table, write_report

__all__ = ["result_table", "write_report"]
