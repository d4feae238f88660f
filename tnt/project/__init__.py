"""params.yaml as a whole, and where the data lies."""
