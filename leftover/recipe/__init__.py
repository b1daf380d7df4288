"""All that a user may set: the sections of the YAML, the training settings, and their checks."""
