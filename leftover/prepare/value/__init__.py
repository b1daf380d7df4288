"""V(x): what the reference is worth on a prompt, by a small estimate on its frozen hidden states."""

from leftover.prepare.value.head import ValueHead

__all__ = ["ValueHead"]
