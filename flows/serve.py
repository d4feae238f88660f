"""Prefect on this machine: its server and UI, and something that runs the flows.

    python -m flows.serve --worker    what `make serve` does: server, work pool, worker
    python -m flows.serve             no worker: this process runs the flows itself

Both take the deployments from prefect.yaml, listen on 127.0.0.1 only and end with Ctrl-C. The
server wants a token, which its worker and runs have. Other shells take it from work/prefect.env:

    . work/prefect.env; prefect deployment run targeted-update/on-demand

A server that answers at PREFECT_API_URL already is used as it is.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import secrets
import shlex
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

from flows import servers
from tnt.core import tether
from tnt.core.errors import one_line_errors
from tnt.core.params import load_yaml
from tnt.core.runlog import RUNS_FILE

API = "http://127.0.0.1:4200/api"
ACCESS = RUNS_FILE.with_name("prefect.env")
"""What a shell sources to use the server: its address and its token."""
TOKEN = "PREFECT_API_AUTH_STRING"
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
        if _answers(api):
            _refuse_without_token(api)
        else:
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
    """Run Prefect's server while the body runs; it refuses other users and web pages."""
    place = urlparse(api)
    os.environ.setdefault(TOKEN, f"tnt:{secrets.token_urlsafe(32)}")
    os.environ["PREFECT_SERVER_API_AUTH_STRING"] = os.environ[TOKEN]
    os.environ["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] = ",".join(
        f"http://{host}:{place.port}" for host in servers.hosts()
    )
    with _asgi("prefect_server", str(place.hostname), place.port) as process:
        deadline = time.monotonic() + START_S
        while not _answers(api):
            if process.poll() is not None or time.monotonic() > deadline:
                raise ValueError(
                    f"Prefect's server does not start at {api}. Is the port taken? "
                    "PREFECT_API_URL names another; `prefect server start` shows why."
                )
            time.sleep(0.5)
        _let_in()
        yield


def _let_in() -> None:
    """Write down how to use the server, for this user's eyes only."""
    ACCESS.parent.mkdir(exist_ok=True)
    ACCESS.unlink(missing_ok=True)
    with open(os.open(ACCESS, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        for name in ("PREFECT_API_URL", TOKEN):
            file.write(f"export {name}={shlex.quote(os.environ[name])}\n")


@contextlib.contextmanager
def _report() -> Iterator[None]:
    """Serve data/report/, which a browser does not open from a link in Prefect's UI otherwise."""
    if "TNT_REPORT_URL" in os.environ:
        yield
        return
    port = urlparse(os.environ["PREFECT_API_URL"]).port or 4200
    os.environ["TNT_REPORT_URL"] = f"http://127.0.0.1:{port + 1}"
    with _asgi("report_server", "127.0.0.1", port + 1) as process:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(2.0)
            raise ValueError(
                f"The report cannot be served at port {port + 1}, which is taken. Set "
                "TNT_REPORT_URL to where it is served, or PREFECT_API_URL to another port."
            )
        yield


def _asgi(
    name: str, host: str, port: int | None
) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """Run one of `flows.servers` while the body runs."""
    command = ["uvicorn", "--factory", f"flows.servers:{name}", "--host", host]
    return _process(*command, "--port", str(port), quiet=True)


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


def _refuse_without_token(api: str) -> None:
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError

    try:
        with get_client(sync_client=True) as client:
            client.read_work_pools(limit=1)
    except PrefectHTTPStatusError as error:
        raise ValueError(
            f"The server at {api} answers with status {error.response.status_code}. If it wants a "
            f"token and `make serve` started it here, `. {ACCESS}` sets {TOKEN}."
        ) from error


def _say(api: str) -> None:
    print(f"Prefect's UI: {api.removesuffix('/api')}    report: {os.environ['TNT_REPORT_URL']}")
    if ACCESS.is_file():
        print(f"To sign in, and for `prefect` in another shell: {ACCESS}")
    print("Ctrl-C ends all of it.", flush=True)


def _interrupt(number: int, frame: FrameType | None) -> Any:
    raise KeyboardInterrupt


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", action="store_true", help="a work pool and a worker too")
    with one_line_errors("serve"):
        serve(worker=parser.parse_args().worker)
