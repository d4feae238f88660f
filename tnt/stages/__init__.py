"""One module per DVC stage: read, call the library, check, write."""
