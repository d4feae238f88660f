"""What is trained: targets, the table of losses, batches, and how both run fast."""
