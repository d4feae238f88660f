"""Errors in one line: what is wrong, and the remedy that fits."""

from __future__ import annotations

import errno
from pathlib import Path

import jinja2
import pytest

from tnt.core.errors import Collected, Faults, lines_of, one_line_errors
from tnt.report import pages

NO_SPACE = OSError(errno.ENOSPC, "No space left on device", "data/x")
NO_PERMISSION = PermissionError(errno.EACCES, "Permission denied", "data/x")
NO_FILE = FileNotFoundError(errno.ENOENT, "No such file or directory", "data/x")
OURS = FileNotFoundError(errno.ENOENT, "No such file", str(Path(pages.__file__).parent / "x.css"))
OF_REQUESTS = OSError("HTTPSConnectionPool: Max retries exceeded")
REMEDIES = [
    (NO_SPACE, "Check free space and permissions."),
    (NO_PERMISSION, "Check free space and permissions."),
    (NO_FILE, "Check the name."),
    (OURS, "That file is a part of tnt"),
    (jinja2.TemplateNotFound("index.html"), "That file is a part of tnt"),
    (ConnectionResetError(errno.ECONNRESET, "reset"), "Check the address and the network."),
    (TimeoutError("timed out"), "Check the address and the network."),
    (OF_REQUESTS, "Check the address and the network."),
]


def told(error):
    with pytest.raises(SystemExit) as caught, one_line_errors("tnt"):
        raise error
    return str(caught.value)


@pytest.mark.parametrize(("error", "remedy"), REMEDIES, ids=lambda case: repr(case)[:40])
def test_the_remedy_is_that_of_the_error(error, remedy):
    line = told(error)
    assert line.startswith(f"tnt: {type(error).__name__}: ")
    assert [said for said in {said for _, said in REMEDIES} if said in line] == [remedy]


def test_a_bug_has_no_remedy(capsys):
    assert told(RuntimeError("odd")) == "tnt: RuntimeError: odd."
    assert "Traceback" in capsys.readouterr().err


def test_several_faults_are_a_line_each():
    assert told(Faults(["a is 1.", "b\nis 2.", "a is 1."])) == "tnt: a is 1.\ntnt: b is 2."


def test_what_is_wrong_is_collected_and_bugs_are_not():
    collected = Collected()
    for number in (1, 2):
        with collected:
            raise ValueError(f"{number} is odd.")
    with collected:
        raise Faults(["a.", "b."])
    with pytest.raises(Faults) as caught:
        collected.refuse()
    assert lines_of(caught.value) == ["1 is odd.", "2 is odd.", "a.", "b."]
    with pytest.raises(KeyError), collected:
        raise KeyError


def test_nothing_wrong_is_nothing_refused():
    Collected().refuse()
