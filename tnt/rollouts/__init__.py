"""From completions the way of the token ideal: ban what is flagged, and continue."""
