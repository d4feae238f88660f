"""Prefect on this machine: its server and UI, and something that runs the flows.

    python -m flows.serve --worker    what `make serve` does: server, work pool, worker
    python -m flows.serve             no worker: this process runs the flows itself

Both take the deployments from prefect.yaml, listen on 127.0.0.1 only and end with Ctrl-C. A server
that answers at PREFECT_API_URL already is used as it is.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlparse

from tnt.core import tether
from tnt.core.errors import one_line_errors
from tnt.core.params import load_yaml
from tnt.project import layout

API = "http://127.0.0.1:4200/api"
POOL = "local"
START_S = 120.0
STOP_S = 5.0
"""What the worker, which waits for its runs, and the server are given to end."""
SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
}


def serve(*, worker: bool) -> None:
    """Run until Ctrl-C or SIGTERM.

    Raises:
        ValueError: The server does not start, or Prefect refuses a deployment.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    for name, value in {**SETTINGS, "PREFECT_API_URL": API}.items():
        os.environ.setdefault(name, value)
    os.environ[tether.VARIABLE] = str(os.getpid())
    api = os.environ["PREFECT_API_URL"]
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as running:
        if not _answers(api):
            running.enter_context(_server(api))
        running.enter_context(_report())
        if worker:
            _create_pool()
            _prefect("--no-prompt", "deploy", "--all")
            command = ["prefect", "worker", "start", "--pool", POOL]
            process = running.enter_context(_process(*command))
            _say(api)
            if process.wait():
                raise ValueError(f"The worker ended with status {process.returncode}: see above.")
        else:
            _say(api)
            _run_flows()


def _create_pool() -> None:
    """Create the work pool, one run at a time; `prefect work-pool create` would ask the network."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound
    from prefect.workers.process import ProcessWorker

    pool = WorkPoolCreate(
        name=POOL,
        type="process",
        base_job_template=ProcessWorker.get_default_base_job_template(),
        concurrency_limit=1,
    )
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(POOL)
        except ObjectNotFound:
            client.create_work_pool(pool)


def _run_flows() -> None:
    """Run the deployments of prefect.yaml in this process, until it is interrupted."""
    from prefect import serve as run
    from prefect.client.schemas.schedules import CronSchedule

    deployments = []
    for entry in load_yaml(Path("prefect.yaml"))["deployments"]:
        file, _, name = entry["entrypoint"].partition(":")
        flow = getattr(importlib.import_module(file.removesuffix(".py").replace("/", ".")), name)
        crons = [
            CronSchedule(cron=s["cron"], timezone=s["timezone"]) for s in entry.get("schedules", [])
        ]
        deployments.append(
            flow.to_deployment(
                name=entry["name"],
                description=entry["description"],
                parameters=entry.get("parameters", {}),
                schedules=crons,
                concurrency_limit=1,
            )
        )
    run(*deployments, limit=1)


@contextlib.contextmanager
def _server(api: str) -> Iterator[None]:
    """Run Prefect's server while the body runs."""
    place = urlparse(api)
    command = ["prefect", "server", "start", "--host", str(place.hostname)]
    with _process(*command, "--port", str(place.port), quiet=True) as process:
        deadline = time.monotonic() + START_S
        while not _answers(api):
            if process.poll() is not None or time.monotonic() > deadline:
                raise ValueError(
                    f"Prefect's server does not start at {api}. Is the port taken? "
                    "PREFECT_API_URL names another; `prefect server start` shows why."
                )
            time.sleep(0.5)
        yield


@contextlib.contextmanager
def _report() -> Iterator[None]:
    """Serve data/report/, which a browser does not open from a link in Prefect's UI otherwise."""
    if "TNT_REPORT_URL" in os.environ:
        yield
        return
    port = urlparse(os.environ["PREFECT_API_URL"]).port or 4200
    os.environ["TNT_REPORT_URL"] = f"http://127.0.0.1:{port + 1}"
    layout.REPORT.mkdir(parents=True, exist_ok=True)
    command = ["http.server", "--bind", "127.0.0.1", "--directory", str(layout.REPORT)]
    with _process(*command, str(port + 1), quiet=True) as process:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1.0)
            raise ValueError(
                f"The report cannot be served at port {port + 1}, which is taken. Set "
                "TNT_REPORT_URL to where it is served, or PREFECT_API_URL to another port."
            )
        yield


@contextlib.contextmanager
def _process(*command: str, quiet: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Python module as a process while the body runs."""
    output = subprocess.DEVNULL if quiet else None
    process = subprocess.Popen(
        [sys.executable, "-m", "tnt.core.tether", *command],
        stdout=output,
        stderr=output,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _prefect(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", *arguments], capture_output=True, text=True
    )
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise ValueError(f"`prefect {' '.join(arguments)}` failed: {said}")


def _answers(api: str) -> bool:
    try:
        with urllib.request.urlopen(f"{api}/health", timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _say(api: str) -> None:
    print(f"Prefect's UI: {api.removesuffix('/api')}    report: {os.environ['TNT_REPORT_URL']}")
    print("Ctrl-C ends all of it.", flush=True)


def _interrupt(number: int, frame: FrameType | None) -> Any:
    raise KeyboardInterrupt


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", action="store_true", help="a work pool and a worker too")
    with one_line_errors("serve"):
        serve(worker=parser.parse_args().worker)
