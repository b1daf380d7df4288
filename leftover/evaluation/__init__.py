"""Completions of a policy -> rewards, intervals, and the verdict with its caveats."""
