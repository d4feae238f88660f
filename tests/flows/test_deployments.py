"""Prefect for real: its server, a worker, a schedule that fires, a failing gate that is told."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
from projects import ROOT, Project

from flows import serve
from flows.serve import TOKEN

pytestmark = pytest.mark.slow
FIRES_S = 400
RUNS_S = 300


@dataclass(frozen=True)
class Served:
    """A project that `python -m flows.serve --worker` serves."""

    project: Project
    api: str
    environment: dict[str, str]
    process: subprocess.Popen[bytes]
    log: Path

    def ask(self, path, body=None):
        """Return what Prefect's server answers."""
        answer = self.post(path, body)
        assert answer.status_code < 300, answer.text
        return answer.json()

    def post(self, path, body=None, **headers):
        """Post to Prefect's server, with the token unless `Authorization` is another."""
        headers = {"Authorization": authorization(self.environment[TOKEN]), **headers}
        return httpx.post(f"{self.api}/{path}", json=body or {}, headers=headers, timeout=30)

    def prefect(self, *arguments):
        """Run Prefect's command line."""
        return subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
            cwd=self.project.path,
            env=self.environment,
            capture_output=True,
            text=True,
        )

    def ended_run(self, within, **wanted):
        """Wait for a run of the update that has ended; return it."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            for run in self.ask("flow_runs/filter", {"sort": "START_TIME_ASC"}):
                ended = run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
                if ended and wanted.items() <= run.items():
                    return run
            time.sleep(1)
        raise AssertionError(f"no run with {wanted} ended in {within} s")

    def artifacts(self, run):
        """Return the pages that a run left, by key."""
        found = self.ask("artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}})
        return {artifact["key"]: artifact for artifact in found}


def free_ports():
    """Return a port that is free, as is the next one."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            with contextlib.suppress(OSError):
                second.bind(("127.0.0.1", port + 1))
                return port


def authorization(token):
    return "Basic " + base64.b64encode(token.encode()).decode()


def sourced(path):
    """Return the variables that a shell has after it read a file."""
    done = subprocess.run(
        ["sh", "-c", '. "$0"; env', path], capture_output=True, text=True, check=True, env={}
    )
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


@pytest.fixture(scope="module")
def served(begun_llama, tmp_path_factory):
    """Serve a project that lists two rounds and deploys `nightly` for every minute."""
    folder = tmp_path_factory.mktemp("served")
    project = begun_llama.copy(folder / "project")
    subprocess.run(["cp", "-r", ROOT / "flows", ROOT / "prefect.yaml", project.path], check=True)
    project.edit("prefect.yaml", '"0 3 * * *"', '"* * * * *"')
    project.edit("prefect.yaml", "work/published", str(folder / "shelf"))
    with project.params() as params:
        prompts = {"replies": ["first.jsonl"], "summaries": ["first.jsonl"]}
        for name, parent, detector in (("r1", "base", "boilerplate"), ("r2", "r1", "hedges")):
            entry = {"parent": parent, "detectors": [detector], "prompts": prompts}
            params["rounds"][name] = entry
    project.commit()
    port = free_ports()
    api = f"http://127.0.0.1:{port}/api"
    environment = {
        **project.environment,
        "PREFECT_API_URL": api,
        "PREFECT_HOME": str(folder / "prefect"),
        "PYTHONUNBUFFERED": "1",
    }
    command = [sys.executable, "-m", "flows.serve", "--worker"]
    with (
        (folder / "serve.log").open("w+", encoding="utf-8") as log,
        subprocess.Popen(
            command, cwd=project.path, env=environment, stdout=log, stderr=log
        ) as process,
    ):
        deadline = time.monotonic() + 180
        while f"Prefect's UI: http://127.0.0.1:{port}" not in (folder / "serve.log").read_text():
            assert process.poll() is None, (folder / "serve.log").read_text()
            assert time.monotonic() < deadline, (folder / "serve.log").read_text()
            time.sleep(0.5)
        environment[TOKEN] = sourced(project.path / serve.ACCESS)[TOKEN]
        yield Served(project, api, environment, process, folder / "serve.log")
        process.kill()


@pytest.fixture(scope="module")
def fired(served):
    """Return the run that the schedule began, after it has ended; later ones do not come."""
    run = served.ended_run(FIRES_S, auto_scheduled=True)
    paused = served.prefect("deployment", "schedule", "pause", "--all")
    assert paused.returncode == 0, paused.stderr
    return run


def test_a_schedule_fires_and_two_rounds_are_trained(served, fired):
    assert fired["state_name"] == "Completed", served.log.read_text()
    project = served.project
    assert project.git("tag").split() == ["round/r1", "round/r2"]
    assert project.git("status", "--porcelain") == ""
    assert project.repro() == set()
    runs = project.git("log", "--format=%(trailers:key=Run,valueonly)", "round/r2", "-1")
    assert runs == f"targeted-update/{fired['name']}"


def test_a_run_leaves_its_pages(served, fired):
    pages = served.artifacts(fired)
    assert pages.keys() == {"result", "rounds", "changes", "report"}
    assert "Accepted: r1, r2." in pages["result"]["data"]
    rounds = json.loads(pages["rounds"]["data"])
    assert [row["round"] for row in rounds] == ["r1", "r2"]
    changes = json.loads(pages["changes"]["data"])
    metrics = served.project.json("data/evaluations/r2/metrics.json")["sets"]["replies"]
    after = metrics["detectors"]["hedges"]["after"]["rate"]
    shown = {(row["prompts"], row["detector"]): row["after"] for row in changes}
    assert shown["replies", "hedges"] == f"{after:.1%}"


def test_the_link_to_the_report_opens(served, fired):
    page = served.artifacts(fired)["report"]
    with urllib.request.urlopen(page["description"], timeout=30) as answer:
        assert answer.read().decode() == served.project.read("data/report/index.html")


def test_every_line_of_dvc_is_in_the_log(served, fired):
    logs = served.ask(
        "logs/filter", {"logs": {"flow_run_id": {"any_": [fired["id"]]}}, "limit": 200}
    )
    assert "Running stage 'train@r1':" in {line["message"] for line in logs}


def test_nothing_listens_beyond_this_machine(served):
    family = [served.process, *psutil.Process(served.process.pid).children(recursive=True)]
    addresses = {
        connection.laddr.ip
        for process in family
        for connection in psutil.Process(process.pid).net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses == {"127.0.0.1"}


def test_the_server_takes_nothing_from_web_pages_and_other_users(served):
    deployment = served.ask("deployments/filter", {"deployments": {"name": {"any_": ["publish"]}}})
    start = f"deployments/{deployment[0]['id']}/create_flow_run"
    runs = len(served.ask("flow_runs/filter"))
    body = {"parameters": {"name": "r1", "publish_to": "/tmp/x", "ungated": True}}
    assert served.post(start, body, Authorization="").status_code == 401
    assert served.post(start, body, Authorization=authorization("a:b")).status_code == 401
    assert served.post(start, body, Host="evil.example:4200").status_code == 400
    asked = {
        "Origin": "https://evil.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type,authorization",
    }
    preflight = httpx.options(f"{served.api}/{start}", headers=asked)
    assert preflight.status_code == 400
    assert "Access-Control-Allow-Origin" not in preflight.headers
    assert len(served.ask("flow_runs/filter")) == runs


def test_the_token_is_for_this_user_alone(served):
    assert (served.project.path / serve.ACCESS).stat().st_mode & 0o777 == 0o600
    assert served.environment[TOKEN] not in served.log.read_text()
    assert served.project.git("status", "--porcelain", "--", str(serve.ACCESS)) == ""


def test_the_report_is_for_who_asks_for_this_machine(served, fired):
    address = served.artifacts(fired)["report"]["description"]
    assert httpx.get(address).status_code == 200
    assert httpx.get(address, headers={"Host": "evil.example"}).status_code == 400


def test_a_parameter_that_does_not_fit_is_refused(served):
    done = served.prefect("deployment", "run", "targeted-update/on-demand", "-p", "max_rounds=0")
    assert done.returncode == 1
    assert "max_rounds" in done.stdout + done.stderr


def test_a_failing_gate_fails_the_run_and_is_told(served, fired):
    with served.project.params() as params:
        params["train"]["learning_rate"] = 1e-9
        params["detectors"]["agreement"] = {
            "kind": "phrases",
            "list": "data/lists/agreement.txt",
        }
    served.project.write("data/lists/agreement.txt", "yes\n")
    served.project.commit()
    with told(served) as messages:
        run = served.prefect(
            "deployment", "run", "targeted-update/on-demand", "--watch", "-p", "notify=" + BLOCK,
            "-p", 'detectors=["agreement"]',
        )  # fmt: skip
        assert run.returncode == 1
        failed = served.ended_run(RUNS_S, state_type="FAILED")
        deadline = time.monotonic() + 30
        while not messages and time.monotonic() < deadline:
            time.sleep(0.2)
    reason = "The round 'r3' failed its gate: agreement went from"
    assert reason in failed["state"]["message"]
    assert len(messages) == 1
    assert reason in messages[0]["body"]
    assert served.project.git("tag").split() == ["round/r1", "round/r2"]
    assert served.project.git("status", "--porcelain") == ""
    assert "Verdict: rejected" in served.project.git("log", "-1", "--format=%(trailers)")
    assert (served.project.path / "data/models/r3").is_dir()
    assert reason in served.artifacts(failed)["result"]["data"]


def test_prompts_are_taken_in_and_a_round_is_published(served, fired, tmp_path):
    rows = "".join(json.dumps({"input": f"Apple number {i}"}) + "\n" for i in range(20))
    (tmp_path / "new.jsonl").write_text(rows, encoding="utf-8")
    source = f"source={tmp_path / 'new.jsonl'}"
    done = served.prefect(
        "deployment", "run", "ingest-prompts/ingest", "--watch", "-p", source, "-p",
        "prompt_set=replies",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert served.project.git("log", "-1", "--format=%s") == "Ingest 20 prompts into replies"
    done = served.prefect("deployment", "run", "publish-round/publish", "--watch", "-p", "name=r2")
    assert done.returncode == 0, done.stdout
    shelf = served.project.path.parent / "shelf"
    assert (shelf / "r2/README.md").is_file()
    assert (shelf / "r2/model.safetensors").is_file()
    elsewhere = tmp_path / "elsewhere"
    done = served.prefect(
        "deployment", "run", "publish-round/publish", "--watch", "-p", "name=r2", "-p",
        f"publish_to={elsewhere}",
    )  # fmt: skip
    assert done.returncode == 1
    refused = served.ended_run(RUNS_S, parameters={"name": "r2", "publish_to": str(elsewhere)})
    assert "No deployment in prefect.yaml publishes to" in refused["state"]["message"]
    assert not elsewhere.exists()


def test_it_all_ends_with_a_signal(served, fired):
    family = psutil.Process(served.process.pid).children(recursive=True)
    served.process.terminate()
    served.process.wait(60)
    _, alive = psutil.wait_procs(family, timeout=15)
    assert alive == []


BLOCK = "custom-webhook/told"


@contextlib.contextmanager
def told(served):
    """Name a block of Prefect that posts to a server of ours; yield what it is told."""
    messages = []

    class Listener(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = (
        "from prefect.blocks.notifications import CustomWebhookNotificationBlock as Block\n"
        f"Block(name='told', url='http://127.0.0.1:{server.server_port}', method='POST', "
        "json_data={'subject': '{{subject}}', 'body': '{{body}}'}).save('told')"
    )
    subprocess.run([sys.executable, "-c", code], env=served.environment, check=True)
    yield messages
    server.shutdown()
