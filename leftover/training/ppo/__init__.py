"""Proximal policy optimisation: the online baseline, which trains on its own completions."""
