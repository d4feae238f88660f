"""The one task that runs DVC.

It is called directly, never submitted: only in the main thread does a cancelled run reach it, and
it then ends dvc and the stage. There are no retries and no cache; DVC is the only cache.
"""

from __future__ import annotations

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from tnt.rounds import programs


@task(name="dvc-repro", task_run_name="dvc repro {target}", cache_policy=NO_CACHE)
def reproduce(target: str) -> None:
    """Run `dvc repro TARGET`; every line it prints goes to the flow's log."""
    programs.reproduce(target, log=get_run_logger().info)
