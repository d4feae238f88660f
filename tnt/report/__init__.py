"""The report: its words, charts and pages."""
