"""Whether to believe a fit, from anchors and the two clouds of cells alone."""
