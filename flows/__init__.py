"""Prefect around the pipeline: schedule, form, retries, notifications, pages. Nothing needs it.

A run ends with the worker that started it, where `flows.serve` started that one.
"""

import os

from tnt.core import tether

if tether.VARIABLE in os.environ:
    tether.end_with_parent()
