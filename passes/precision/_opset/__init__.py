"""How operators changed from one version of the standard operator set to the next, and how to follow a node along."""
