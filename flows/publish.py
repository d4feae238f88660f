"""Publish an accepted round: export it and copy the export to a place that prefect.yaml names.

Whoever starts a run chooses no other place, and no round that is not accepted; `tnt publish` can.
"""

from __future__ import annotations

from pathlib import Path

from prefect import flow, task
from prefect.artifacts import create_link_artifact
from prefect.cache_policies import NO_CACHE

from flows.network import DELAYS_S, RETRIES, is_temporary
from tnt.commands import publish
from tnt.core import addresses
from tnt.core.params import load_yaml

OFFERED = Path("prefect.yaml")


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
def publish_round(name: str, publish_to: str) -> str:
    """Export a round, copy it into a folder or URL of fsspec, and return where it is then.

    Args:
        name: The round, and what its folder is called.
        publish_to: As prefect.yaml has it; there, the round's folder is new or holds this model.
    """
    refuse_elsewhere(publish_to)
    published = publish.publish(name, f"{publish_to.rstrip('/')}/{name}", copy=upload)
    create_link_artifact(link=published, link_text=f"{name}: {published}", key="published")
    return published


def refuse_elsewhere(publish_to: str) -> None:
    """Raise unless prefect.yaml publishes to a place."""
    given = [entry.get("parameters", {}) for entry in load_yaml(OFFERED)["deployments"]]
    if publish_to not in [places["publish_to"] for places in given if "publish_to" in places]:
        raise ValueError(
            f"No deployment in {OFFERED} publishes to {addresses.shown(publish_to)!r}. Give one "
            "the parameter `publish_to` there, or publish by hand with `tnt publish`."
        )
