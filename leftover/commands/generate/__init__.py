"""`leftover generate`: completions sampled from a model, scored, as rows to train on."""
