"""Kill runs of the Prefect flow at random moments; whoever runs next must recover.

    .venv/bin/python benchmarks/chaos.py [--kills 20] [--seed 0] [--json chaos.json]

Sets up a tiny project (that of the tests), a Prefect server and a worker, runs the flow
`targeted-update` once undisturbed, and then, on fresh copies, kills it: cancelled as the UI does
it, SIGTERM and kill -9 of the flow, of dvc and of the stage that runs. After each kill

- no process of the run lives 30 s later;
- git's objects are sound; every commit and tag made holds metrics that parse and a passed gate;
- each object in DVC's cache has the hash that it is named after, and all that dvc.lock and folders
  name is there;
- the next run of the flow completes and leaves what the undisturbed run left, byte for byte.

Prints a line a kill and exits with status 1 if anything of that did not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from prefect.client.orchestration import SyncPrefectClient
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from tqdm import tqdm

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import tiny  # noqa: E402
from projects import Project, lay_out  # noqa: E402

from flows.serve import TOKEN  # noqa: E402
from tnt.core import tether  # noqa: E402
from tnt.project import layout  # noqa: E402
from tnt.rounds import recovery  # noqa: E402

MARKER = "TNT_CHAOS_RUN"
"""In the environment of every process of a run: which one."""
DEPLOYMENT = "targeted-update/on-demand"
ROUND = "r1"
GONE_S = 30.0
"""What all processes of a run may take to end after a kill."""
PATIENCE_S = 600.0
"""What a run, or the start of Prefect, may take before the benchmark gives up."""
POLL_S = 0.1
KINDS: dict[str, tuple[str, signal.Signals | None]] = {
    "cancel in the UI": ("", None),
    "kill -9 of the flow": ("flow", signal.SIGKILL),
    "kill -9 of the stage": ("stage", signal.SIGKILL),
    "kill -9 of dvc": ("dvc", signal.SIGKILL),
    "SIGTERM to the flow": ("flow", signal.SIGTERM),
    "SIGTERM to dvc": ("dvc", signal.SIGTERM),
    "SIGTERM to the stage": ("stage", signal.SIGTERM),
}
"""What is killed, and how; in turn."""
DVC = r"-m tnt\.tether dvc "
STAGE = r"^\S*python\S* -m tnt\.stages\.(\w+)"


@dataclass(slots=True)
class Kill:
    """What a kill did."""

    kind: str
    after_s: float
    """From the first process of the run."""
    during: str = ""
    """The stage that ran, if one did."""
    gone_s: float = 0.0
    """Until no process of the run was alive."""
    ended: str = ""
    """The run's state in Prefect."""
    recovered_s: float = 0.0
    """What the next run took."""
    faults: list[str] = field(default_factory=list)
    """What did not hold."""

    def __str__(self) -> str:
        """Return a line about it."""
        during = self.during or "no stage"
        held = "; ".join(self.faults) or f"the next run recovered in {self.recovered_s:.0f} s"
        return (
            f"{self.kind} after {self.after_s:.1f} s, in {during}: all gone in {self.gone_s:.1f} s,"
            f" run {self.ended}; {held}"
        )


@dataclass(frozen=True, slots=True)
class Result:
    """What is left of a finished run, to be equal whatever happened before."""

    tree: str
    """Git's hash of all files in the last commit."""
    files: dict[str, str]
    tags: str


class Arena:
    """A prepared project, the place where copies of it are run, and Prefect."""

    def __init__(self, folder: Path) -> None:
        """Prepare the project; Prefect is not started yet.

        Args:
            folder: An empty one.
        """
        self.folder = folder
        self.api = f"http://127.0.0.1:{_free_port()}/api"
        self.environment = _environment(folder, self.api)
        self.client = SyncPrefectClient(self.api, auth_string=self.environment[TOKEN])
        self.project = Project(folder / "project", self.environment)
        self._prepare()
        self.prepared = self.project.copy(folder / "prepared")
        self.start = self.project.git("rev-parse", "HEAD")

    def _prepare(self) -> None:
        tiny.save_base("llama", self.folder / "base")
        self.project.path.mkdir()
        lay_out(self.project.path, self.folder / "base", self.environment)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "flows", self.project.path / "flows", ignore=ignored)
        yaml = YAML()
        offered = yaml.load(ROOT / "prefect.yaml")
        for deployment in offered["deployments"]:
            deployment.pop("schedules", None)  # a benchmark may run at three in the morning
        yaml.dump(offered, self.project.path / "prefect.yaml")
        with self.project.params() as params:
            params["rounds"] = {}
        self.project.repro("respond_base")
        self.project.commit()

    def restore(self) -> None:
        """Put the prepared project in place, with nothing cached but the base.

        The folder itself stays, for Prefect's worker runs in it.
        """
        for path in self.project.path.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.rmtree(self.folder / "dvc", ignore_errors=True)
        subprocess.run(["cp", "-a", f"{self.prepared.path}/.", self.project.path], check=True)

    @contextlib.contextmanager
    def prefect(self) -> Iterator[None]:
        """Run a server and a worker while the body runs."""
        log = (self.folder / "prefect.log").open("w")
        process = subprocess.Popen(
            [sys.executable, "-m", "tnt.core.tether", "flows.serve", "--worker"],
            cwd=self.project.path,
            env=self.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait(lambda: self._deployed(process), "Prefect")
            yield
        finally:
            process.terminate()
            process.wait(PATIENCE_S)

    def _deployed(self, process: subprocess.Popen[bytes]) -> bool:
        if process.poll() is not None:
            raise RuntimeError((self.folder / "prefect.log").read_text())
        with contextlib.suppress(httpx.HTTPError, ObjectNotFound):
            return self.client.read_deployment_by_name(DEPLOYMENT) is not None
        return False

    def begin(self, marker: str) -> Run:
        """Start a run, as the UI does; return when its first process is there."""
        run = Run(self, marker)
        _wait(lambda: run.processes() or run.over(), "the worker")
        return run


class Run:
    """A run of the flow."""

    def __init__(self, arena: Arena, marker: str) -> None:
        """Ask Prefect for the run.

        Args:
            arena: Where it runs.
            marker: A text of its own.
        """
        self.client, self.marker = arena.client, marker
        deployment = self.client.read_deployment_by_name(DEPLOYMENT)
        variables = {"env": {MARKER: marker}}
        run = self.client.create_flow_run_from_deployment(deployment.id, job_variables=variables)
        self.id = run.id

    def state(self) -> Any:
        """Return its state in Prefect."""
        return self.client.read_flow_run(self.id).state

    def over(self) -> bool:
        """Whether Prefect says that it ended."""
        return self.state().is_final()

    def wait(self) -> float:
        """Wait until Prefect says that it ended; return how long any process lived, in seconds."""
        began = last = time.monotonic()

        def ended() -> bool:
            nonlocal last
            if self.processes():
                last = time.monotonic()
                return False
            return self.over()

        _wait(ended, f"{self.marker} to end")
        return last - began

    def strike(self, what: str, number: signal.Signals | None) -> bool:
        """Kill a process of it, if there is one, or else cancel it; return whether that was done.

        Args:
            what: `flow`, `dvc` or `stage`; nothing is to cancel, as the UI's button does.
            number: The signal.
        """
        if number is None:
            self.client.set_flow_run_state(self.id, Cancelling(), force=True)
            return True
        with contextlib.suppress(psutil.NoSuchProcess):
            if process := self.find(what):
                process.send_signal(number)
                return True
        return False

    def processes(self) -> list[psutil.Process]:
        """Return its processes that are alive, the oldest first."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                marker = process.environ().get(MARKER)
                if marker == self.marker and process.status() != psutil.STATUS_ZOMBIE:
                    found.append((process.create_time(), process.pid, process))
        return [process for _, _, process in sorted(found, key=lambda entry: entry[:2])]

    def find(self, what: str) -> psutil.Process | None:
        """Return the process of the `flow`, of `dvc`, or of the `stage` that was started last."""
        processes = self.processes()
        if what == "flow":  # Prefect's engine, or what becomes it
            return processes[0] if processes else None
        sought = DVC if what == "dvc" else STAGE
        return next((p for p in reversed(processes) if re.search(sought, _command(p))), None)

    def stage(self) -> str:
        """Return the name of the stage that runs, or nothing."""
        process = self.find("stage")
        found = re.search(STAGE, _command(process)) if process else None
        return found[1] if found else ""


def kill(arena: Arena, kind: str, after_s: float, marker: str) -> tuple[Run, Kill]:
    """Start a run and kill it; if it ends before, go again and strike earlier."""
    while True:
        arena.restore()
        run = arena.begin(marker)
        started = time.monotonic()
        while run.processes() or not run.over():
            late_s, during = time.monotonic() - started, run.stage()
            if late_s >= after_s and run.strike(*KINDS[kind]):
                return run, Kill(kind, late_s, during)
            time.sleep(POLL_S)
        after_s /= 2


def aftermath(arena: Arena, run: Run, done: Kill, undisturbed: Result) -> None:
    """Wait for the end of a killed run, look at what it left, run again, compare."""
    done.gone_s = run.wait()
    if done.gone_s > GONE_S:
        done.faults.append(f"processes lived for {done.gone_s:.0f} s")
    done.ended = run.state().name
    done.faults += [*faults(arena.project, arena.start)]
    following = arena.begin(f"{run.marker} again")
    done.recovered_s = following.wait()
    if not (ended := following.state()).is_completed():
        done.faults.append(f"the next run {ended.name}: {ended.message}")
    done.faults += [*faults(arena.project, arena.start), *differences(arena.project, undisturbed)]


def faults(project: Project, start: str) -> Iterator[str]:
    """Yield what is wrong or half-written in git and in DVC's cache, in a sentence each.

    Args:
        project: Where a run ended, or was ended.
        start: The commit that it started from.
    """
    checked = project.run("git", "fsck", "--strict", "--no-dangling")
    if checked.returncode or checked.stdout:
        yield f"git fsck: {checked.stdout} {checked.stderr}"
        return
    made = project.git("log", "--format=%s", f"{start}..HEAD").splitlines()
    if made not in ([], [f"Accept round {ROUND}"]):
        yield f"commits {made}"
    tags = project.git("tag", "--list").split()
    for revision in ("HEAD", *tags):
        yield from _unsound(project, revision)
    yield from _wrong_objects(project)


def _unsound(project: Project, revision: str) -> Iterator[str]:
    """Yield what is wrong in a commit: files that do not parse, a tag on a failed gate."""
    files = project.git("ls-tree", "-r", "--name-only", revision).splitlines()
    try:
        params = _yaml(project, revision, layout.PARAMS)
        for path in files:
            if path.endswith("metrics.json"):
                json.loads(project.git("show", f"{revision}:{path}"))
        for stage in _yaml(project, revision, layout.LOCK)["stages"].values():
            for out in stage["outs"]:
                in_git = out["path"] in files
                if not in_git and not _object(project, out["md5"]).is_file():
                    yield f"{revision}: {out['path']} is not in the cache"
        if tagged := re.match(r"round/(.+)", revision):
            metrics = layout.metrics(tagged[1]).as_posix()
            if not json.loads(project.git("show", f"{revision}:{metrics}"))["gate"]["passed"]:
                yield f"{revision} is tagged and failed its gate"
            if tagged[1] not in params["rounds"]:
                yield f"{revision} does not list its round"
    except (AssertionError, KeyError, ValueError, YAMLError) as error:  # git's, or no such content
        yield f"{revision}: {' '.join(str(error).split())}"


def _wrong_objects(project: Project) -> Iterator[str]:
    """Yield the objects in DVC's cache that are not what their names say, and those that miss."""
    cache = project.path / ".dvc/cache/files/md5"
    for path in sorted(cache.glob("[0-9a-f][0-9a-f]/*")):
        name = path.parent.name + path.name
        if not re.fullmatch(r"[0-9a-f]{32}(\.dir)?", name):
            continue  # DVC's temporary files, which nothing names
        content = path.read_bytes()
        if hashlib.md5(content).hexdigest() != name.removesuffix(".dir"):
            yield f"the cache's {name} is half-written"
        elif name.endswith(".dir"):
            for entry in json.loads(content):
                if not _object(project, entry["md5"]).is_file():
                    yield f"the cache's {name} names {entry['relpath']}, which is not there"


def left(project: Project) -> Result:
    """Return what a finished run left."""
    paths = (layout.LOCK, layout.PARAMS, layout.METRICS)
    files = {str(p): project.read(str(p)) for p in paths if (project.path / p).is_file()}
    tags = project.git("tag", "--list", "--points-at", "HEAD")
    return Result(project.git("rev-parse", "HEAD^{tree}"), files, tags)


def differences(project: Project, undisturbed: Result) -> Iterator[str]:
    """Yield in what the project differs from one whose run was left alone."""
    now = left(project)
    for name, content in undisturbed.files.items():
        if now.files.get(name) != content:
            yield f"{name} differs from the undisturbed run's"
    if now.tree != undisturbed.tree:
        yield f"the commit's files differ: tree {now.tree}, not {undisturbed.tree}"
    if now.tags != undisturbed.tags:
        yield f"the last commit's tags are {now.tags!r}, not {undisturbed.tags!r}"
    if changed := project.git("status", "--porcelain"):
        yield f"git status: {changed}"
    status = project.run("python", "-m", "dvc", "status", "--json")
    if status.stdout.strip() != "{}":
        yield f"dvc status: {status.stdout} {status.stderr}"
    if (project.path / recovery.NOTE).exists():
        yield f"{recovery.NOTE} is still there"


def main() -> None:
    """Kill, look, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", type=Path, help="write the result to this file too")
    parser.add_argument("--keep", type=Path, help="work in this new folder, and leave it")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        if args.keep:
            args.keep.mkdir(parents=True)
        folder = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        report = measure(folder.resolve(), kills=args.kills, seed=args.seed)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(
        f"{len(report['kills']) - report['broken']} of {len(report['kills'])} kills were survived; "
        f"processes lived for {report['longest_s']:.1f} s at most; "
        f"an undisturbed run takes {report['undisturbed_s']:.0f} s."
    )
    sys.exit(report["broken"] > 0)


def measure(folder: Path, *, kills: int, seed: int) -> dict[str, Any]:
    """Return what the kills did, and how many broke something."""
    drawn = random.Random(seed)
    arena = Arena(folder)
    done: list[Kill] = []
    with arena.prefect():
        run = arena.begin("the undisturbed run")
        undisturbed_s = run.wait()
        undisturbed, ended = left(arena.project), run.state()
        problems = [*faults(arena.project, arena.start), *differences(arena.project, undisturbed)]
        if not ended.is_completed() or problems or undisturbed.tags != f"round/{ROUND}":
            raise RuntimeError(f"The undisturbed run: {ended}, {undisturbed.tags}, {problems}")
        for i in tqdm(range(kills), desc=f"kills within {undisturbed_s:.0f} s", disable=None):
            kind = [*KINDS][i % len(KINDS)]
            killed, one = kill(arena, kind, drawn.uniform(0, undisturbed_s), f"kill {i + 1}")
            aftermath(arena, killed, one, undisturbed)
            done.append(one)
            tqdm.write(f"{i + 1:2} {one}", file=sys.stdout)
    return {
        "seed": seed,
        "undisturbed_s": undisturbed_s,
        "kills": [asdict(one) for one in done],
        "broken": sum(bool(one.faults) for one in done),
        "longest_s": max((one.gone_s for one in done), default=0.0),
    }


def _environment(folder: Path, api: str) -> dict[str, str]:
    """Return the environment of Prefect and of all commands in the project."""
    kept = {k: v for k, v in os.environ.items() if k not in (tether.VARIABLE, MARKER)}
    return {
        **kept,
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(folder / "dvc"),
        "GIT_AUTHOR_NAME": "Chaos",
        "GIT_AUTHOR_EMAIL": "chaos@example.org",
        "GIT_COMMITTER_NAME": "Chaos",
        "GIT_COMMITTER_EMAIL": "chaos@example.org",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PREFECT_API_URL": api,
        TOKEN: "chaos:monkey",
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_WORKER_QUERY_SECONDS": "1",  # how soon a run starts; not how soon it is cancelled
        "PYTHONPATH": str(folder / "project"),
        "TNT_REPORT_URL": "about:blank",  # no server of its own for the report
        "TOKENIZERS_PARALLELISM": "false",
    }


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _wait(done: Callable[[], Any], what: str, limit_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + limit_s
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"Waited {limit_s:.0f} s for {what}.")
        time.sleep(POLL_S)


def _command(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _yaml(project: Project, revision: str, path: Path) -> Any:
    return YAML(typ="safe").load(project.git("show", f"{revision}:{path}"))


def _object(project: Project, md5: str) -> Path:
    return project.path / ".dvc/cache/files/md5" / md5[:2] / md5[2:]


if __name__ == "__main__":
    main()
