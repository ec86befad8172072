"""Log-likelihood-ratio minimizing flows."""
