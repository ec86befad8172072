"""Methods that match distributions by a discriminator: the Jacobian-sparse translator and its baselines."""
