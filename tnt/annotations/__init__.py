"""People's annotations of completions, and the files they come in."""
