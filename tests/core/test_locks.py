import subprocess
import sys
import time

import pytest

from tnt.core import command
from tnt.core.command import stage_run
from tnt.core.locks import held

HOLD = """
import sys
from pathlib import Path
from tnt.core.locks import held
with held(Path(sys.argv[1]), doing="The stage train@r1"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def lock(tmp_path):
    return tmp_path / "deep" / "a.lock"


@pytest.fixture
def holder(lock):
    command = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield process
        process.kill()


def test_who_holds_a_lock_is_named(lock, holder):
    said = rf"^The stage train@r1 \(process {holder.pid}\) holds {lock}\. Wait for it to end"
    with pytest.raises(ValueError, match=said), held(lock, doing="another"):
        pass


def test_a_lock_is_free_once_its_holder_is_killed(lock, holder):
    holder.kill()
    holder.wait()
    with held(lock, doing="another"):
        assert lock.read_text(encoding="utf-8").startswith("another (process ")


def test_a_lock_is_waited_for(lock, holder):
    started = time.monotonic()
    with pytest.raises(ValueError, match="holds"), held(lock, doing="another", wait_s=0.5):
        pass
    assert time.monotonic() - started >= 0.5
    holder.stdin.close()
    with held(lock, doing="another", wait_s=30):
        pass


def test_a_lock_is_kept_by_a_child_that_inherits_it(lock):
    with held(lock, doing="first") as file:
        child = subprocess.Popen(["sleep", "60"], pass_fds=(file.fileno(),))
    with child:
        with pytest.raises(ValueError, match="first"), held(lock, doing="second"):
            pass
        child.kill()
    with held(lock, doing="second"):
        pass


def test_two_stages_of_a_round_do_not_run_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "LOCK_WAIT_S", 0.2)
    monkeypatch.setenv("DVC_STAGE", "train@r1")
    holder = [sys.executable, "-c", HOLD, "work/locks/r1.lock"]
    with subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with pytest.raises(SystemExit) as ended, stage_run("train"):
            pass
        assert str(ended.value).startswith("train: The stage train@r1 (process ")
        monkeypatch.setenv("DVC_STAGE", "train@r2")
        with stage_run("train"):
            pass
        process.kill()
