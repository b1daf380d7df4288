"""Pairwise comparison of completions, by a language model or by people."""
