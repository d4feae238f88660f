import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tnt.core import tether

# A process that ties itself, says so, and would live on.
CHILD = """
import sys, time
from tnt.core import tether
if {watched}:
    tether._signalled_by_kernel = lambda: False
tether.end_with_parent()
print("tied", flush=True)
time.sleep(60)
"""
# A process that starts that one, through a shell or not, and passes on what it prints.
PARENT = """
import json, os, subprocess, sys
command, environment = json.loads(sys.argv[1])
child = subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


def start(command, environment=None):
    """Start a process that starts `command`; return it and the other's process id."""
    given = {k: v for k, v in os.environ.items() if k != tether.VARIABLE}
    arguments = json.dumps([command, environment or {}])
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, arguments], stdout=subprocess.PIPE, env=given
    )
    return parent, int(parent.stdout.readline())


def tied(watched=False):
    return [sys.executable, "-c", CHILD.format(watched=watched)]


def ended(pid, within=5.0):
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("watched", [False, True], ids=["by the kernel", "by a thread"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_ends_with_its_parent(watched, number):
    parent, child = start(tied(watched))
    with parent:
        assert psutil.pid_exists(child)
        parent.send_signal(number)
    assert ended(child)


def test_a_shell_in_between_does_not_keep_it_alive():
    inner = " ".join(f"'{word}'" for word in tied())
    parent, shell = start(["/bin/sh", "-c", f"{inner}; true"])
    (child,) = psutil.Process(shell).children()
    with parent:
        parent.kill()
    assert ended(child.pid)
    os.kill(shell, signal.SIGKILL) if psutil.pid_exists(shell) else None


def test_a_named_process_is_the_one_to_end_with():
    with subprocess.Popen(["sleep", "60"]) as other:
        parent, child = start(tied(), {tether.VARIABLE: str(other.pid)})
        with parent:
            other.kill()
            other.wait()
            assert ended(child)


def test_a_process_whose_parent_is_gone_does_not_begin():
    with subprocess.Popen(["true"]) as gone:
        pass
    environment = {**os.environ, tether.VARIABLE: str(gone.pid)}
    done = subprocess.run(tied(), env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == b""


def test_a_module_runs_as_a_command():
    command = [sys.executable, "-m", "tnt.core.tether", "json.tool", "--compact"]
    done = subprocess.run(command, input='{"a": 1}', capture_output=True, text=True, check=True)
    assert done.stdout == '{"a":1}\n'


def test_every_stage_is_tied_before_its_slow_imports():
    """The package does it when DVC runs a stage, so that no import comes before."""
    code = "import os, tnt.stages, sys; print(os.environ['TNT_PARENT'], os.getpid(), *sys.modules)"
    environment = {**os.environ, "DVC_STAGE": "train@r1"}
    environment.pop(tether.VARIABLE, None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    named, own, *modules = done.stdout.split()
    assert named == own
    assert not {"torch", "transformers", "pyarrow"} & {*modules}
