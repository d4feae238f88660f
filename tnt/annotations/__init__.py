"""People's work: what they said about completions, and the files it comes in."""
