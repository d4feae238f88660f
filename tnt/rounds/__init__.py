"""Rounds over time: listed, judged, accepted, restored, updated."""
