"""Several runs, each on what the policy before wrote: `rounds` of a recipe."""
