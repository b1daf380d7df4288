"""Loading a model, log-probabilities, the reference's pass, sampling, divergence."""
