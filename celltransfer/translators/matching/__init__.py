"""Methods that couple the two clouds of cells and learn from the match: consensus, fused Gromov-Wasserstein."""
