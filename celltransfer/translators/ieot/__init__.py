"""Semi-supervised inverse entropic optimal transport: in closed form, and with free networks."""
