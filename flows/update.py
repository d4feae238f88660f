"""Flow `targeted-update`: rounds on a schedule, until the model is clean.

The loop itself is `tnt.rounds.update`; here it gets a form, a log, notifications and pages.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, get_run_logger, runtime, task
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)
from prefect.blocks.core import Block
from prefect.cache_policies import NO_CACHE
from pydantic import Field

from flows.dvc import reproduce
from flows.ingest import ingest_prompts
from flows.network import DELAYS_S, RETRIES
from flows.publish import publish_round, refuse_elsewhere
from tnt.commands import summary
from tnt.project import checks, layout
from tnt.rounds import history, listed, sharing
from tnt.rounds.update import Outcome, update

REPORT_URL = "TNT_REPORT_URL"
"""In the environment: where data/report/ is served, for the link to it."""


def tell(flow: Any, flow_run: Any, state: Any) -> None:
    """Tell people why a run ended, through the block that it names; a hook of Prefect."""
    if name := flow_run.parameters.get("notify"):
        block: Any = Block.load(name)
        block.notify(subject=f"{flow_run.name}: {state.name}", body=state.message or "No message.")


@flow(name="targeted-update", on_failure=[tell], on_crashed=[tell], on_cancellation=[tell])
def targeted_update(
    max_rounds: Annotated[int, Field(ge=1)] = 1,
    target_flag_rate: Annotated[float, Field(ge=0, le=1)] = 0.02,
    push: bool = False,
    detectors: list[str] | None = None,
    inbox: dict[str, str] | None = None,
    columns: dict[str, list[str]] | None = None,
    publish_to: str | None = None,
    notify: str | None = None,
) -> dict[str, Any]:
    """Train, gate and accept rounds until the model is clean.

    Args:
        max_rounds: Rounds to train at most.
        target_flag_rate: A corpus flagged no more often than this is clean: nothing is changed.
        push: Whether data go to the DVC remote, and commits and tags to the branch's upstream.
        detectors: What new rounds flag besides their parent's detectors.
        inbox: Prompt set -> file, folder, glob or URL of new prompts, which are taken in first.
        columns: Prompt set -> what makes up an input there, where that is not `input` alone.
        publish_to: A URL, as prefect.yaml has it; accepted rounds are exported to folders in it.
        notify: A block that is told of failures and failed gates, such as `slack-webhook/alerts`.

    Raises:
        tnt.rounds.update.GateFailed: A round was rejected.
        ValueError: What `tnt.rounds.update.update` raises.
    """
    run = f"targeted-update/{runtime.flow_run.name}"

    def share(name: str) -> None:
        if push:
            push_all()
        if publish_to:
            publish_round(name, publish_to)

    try:
        if push:
            sharing.refuse_without_remote()
        if publish_to:
            refuse_elsewhere(publish_to)
        for prompt_set, source in (inbox or {}).items():
            named = (columns or {}).get(prompt_set)
            ingest_prompts(source, prompt_set, may_be_empty=True, columns=named)
        outcome = update(
            max_rounds=max_rounds,
            target_flag_rate=target_flag_rate,
            detectors=detectors,
            reproduce=reproduce,
            on_accepted=share,
            log=get_run_logger().info,
            run=run,
        )
        if push:
            push_all()
    except Exception as error:
        leave_pages(str(error))
        raise
    leave_pages(_told(outcome))
    return asdict(outcome)


@task(
    name="push",
    retries=RETRIES,
    retry_delay_seconds=DELAYS_S,
    cache_policy=NO_CACHE,
)
def push_all() -> None:
    """Send data, commits and tags where they are shared."""
    for line in sharing.push():
        get_run_logger().info(line)


@task(name="pages", cache_policy=NO_CACHE)
def leave_pages(said: str) -> None:
    """Leave the run's result, the table of rounds, the last change and the report in the UI."""
    link = _report_link()
    told = f"{said}\n\n[The report]({link})\n" if link else said
    create_markdown_artifact(told, key="result", description="What the run did.")
    create_table_artifact(
        [{k: str(v) for k, v in asdict(entry).items()} for entry in history.log()],
        key="rounds",
        description="Every round that got a verdict, from git.",
    )
    evaluated = [name for name in checks.load().rounds if layout.metrics(name).is_file()]
    if evaluated:
        create_table_artifact(
            summary.table(listed.read_metrics(evaluated[-1])),
            key="changes",
            description=f"What {evaluated[-1]} changed from its parent, on the test prompts.",
        )
    if link:
        create_link_artifact(link, key="report", link_text="The report", description=link)


def _report_link() -> str | None:
    """Return where the report is: served, or else a file; None if there is none yet."""
    if not (layout.REPORT / "index.html").is_file():
        return None
    where = os.environ.get(REPORT_URL) or (Path.cwd() / layout.REPORT).as_uri()
    return f"{where.rstrip('/')}/index.html"


def _told(outcome: Outcome) -> str:
    rates = outcome.flag_rates.items()
    lines = "".join(f"- {name}: {rate:.1%} of its corpus flagged\n" for name, rate in rates)
    accepted = ", ".join(outcome.accepted) or "none"
    return f"Accepted: {accepted}. Stopped: {outcome.stopped}\n\n{lines}"
