"""Which tokens of a completion are negative and which are kept."""
