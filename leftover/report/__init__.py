"""A run folder -> results.json and report.md."""

from leftover.report.write import result_table, write_report

__all__ = ["result_table", "write_report"]
