"""Training runs: their config and key, the store, grids, results."""
