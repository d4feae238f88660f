"""Publish a round: export it and copy the export to a URL."""

from __future__ import annotations

from pathlib import Path

from prefect import flow, task
from prefect.artifacts import create_link_artifact
from prefect.cache_policies import NO_CACHE

from flows.network import DELAYS_S, RETRIES, is_temporary
from tnt.commands import publish


@task(
    retries=RETRIES,
    retry_delay_seconds=DELAYS_S,
    retry_condition_fn=is_temporary,
    cache_policy=NO_CACHE,
)
def upload(folder: Path, destination: str) -> str:
    """Copy an export to a URL; return that."""
    return publish.upload(folder, destination)


@flow
def publish_round(name: str, destination: str, ungated: bool = False) -> str:
    """Export a round, copy it to any URL of fsspec, and return that.

    Args:
        name: The round.
        destination: Holds nothing, or this same model.
        ungated: Publish a round that failed its gate or is not accepted.
    """
    published = publish.publish(name, destination, ungated=ungated, copy=upload)
    create_link_artifact(link=published, link_text=f"{name}: {published}", key="published")
    return published
