"""One module per command: `tnt X` is `tnt/commands/X.py`."""
