"""The commands that are no stage of a run. Only `leftover.cli` imports them."""
