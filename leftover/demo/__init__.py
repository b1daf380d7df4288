"""The demonstration: data, tokenizer and model made in code, then the whole method for real."""

from leftover.demo.run import run_demo

__all__ = ["run_demo"]
