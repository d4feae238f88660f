"""Flow `ingest-prompts`: bring new prompts in, as `tnt ingest` does; what is remote is retried."""

from __future__ import annotations

from prefect import flow, get_run_logger, runtime, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from flows.network import DELAYS_S, RETRIES, is_temporary
from tnt.commands import ingest
from tnt.commands.ingest import SourceFile
from tnt.core import addresses


@task(
    retries=RETRIES,
    retry_delay_seconds=DELAYS_S,
    retry_condition_fn=is_temporary,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def fetch(source: str) -> list[SourceFile]:
    """Read the files of a source."""
    return ingest.fetch(source)


@flow
def ingest_prompts(
    source: str,
    prompt_set: str,
    may_be_empty: bool = False,
    columns: list[str] | None = None,
) -> int:
    """Bring the new prompts of a source into a prompt set, in a commit; return their number.

    Args:
        source: A file, folder or glob, on disk or at any address that fsspec knows.
        prompt_set: One of `prompt_sets` in params.yaml.
        may_be_empty: Whether a source without files is none to fail for, but 0 prompts.
        columns: What makes up an input, in this order, where that is not `input` alone.
    """
    try:
        files = fetch(source)
    except ingest.NothingToRead:
        if may_be_empty:
            return 0
        raise
    run = f"{runtime.flow_run.name} ({runtime.flow_run.id})"
    done = ingest.ingest(source, prompt_set, run=run, files=files, columns=columns)
    told = ingest.sentence(done)
    get_run_logger().info(told)
    page = f"# {done.added} new in {prompt_set}\n\n{told}\n\nFrom `{addresses.shown(source)}`."
    create_markdown_artifact(page, key="ingested")
    return done.added
