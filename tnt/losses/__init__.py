"""Targets, the table of losses, batches, and the losses computed in chunks."""
