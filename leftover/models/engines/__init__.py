"""Completions by vLLM, in this process or by a server, in place of transformers' own generation."""
