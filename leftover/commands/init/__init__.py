"""`leftover init`: from a file of rows and a model to a recipe."""
