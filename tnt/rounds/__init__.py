"""Rounds over time: list, train, accept or reject, roll back, recover."""
