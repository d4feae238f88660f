"""One training run: its params, its order, its checkpoints, its log."""
