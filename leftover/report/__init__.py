"""A run folder -> results.json, report.md and report.html."""
