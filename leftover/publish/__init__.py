"""Export, model card, Hub."""
