"""Patches: a few neurons beside a model's last MLP, which change nothing where they stay shut."""
