"""The closure of a file's imports, in a tree made for it."""

from __future__ import annotations

import pytest

from tnt.core.imports import closure

FILES = {
    "run.py": "import os\nfrom pack import one\n",
    "pack/__init__.py": "",
    "pack/one.py": "from pack.sub.deep import thing\nimport json, pack.two\n",
    "pack/two.py": "def later():\n    from . import three\n    from ..nothing import x\n",
    "pack/three.py": "from .sub import other as o\nimport pack.one\n",
    "pack/sub/__init__.py": "from pack import four\n",
    "pack/sub/deep.py": "thing = 1\n",
    "pack/sub/other.py": "if True:\n    from ..five import *\n",
    "pack/four.py": "",
    "pack/five.py": "",
    "pack/unused.py": "import pack.four\n",
}


@pytest.fixture
def tree(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def names(tree, file):
    return [path.as_posix() for path in closure(tree / file, tree)]


def test_closure_follows_every_kind_of_import(tree):
    assert names(tree, "run.py") == sorted(set(FILES) - {"pack/unused.py"})


def test_file_without_imports_needs_itself_and_its_packages(tree):
    assert names(tree, "pack/four.py") == ["pack/__init__.py", "pack/four.py"]
    assert names(tree, "pack/sub/deep.py") == [
        "pack/__init__.py",
        "pack/four.py",
        "pack/sub/__init__.py",
        "pack/sub/deep.py",
    ]


def test_imports_inside_functions_and_cycles_count(tree):
    assert "pack/three.py" in names(tree, "pack/two.py")
    assert "pack/two.py" in names(tree, "pack/three.py")


def test_name_that_is_both_a_package_and_a_module_counts_with_both(tree):
    (tree / "pack" / "sub.py").write_text("")
    assert {"pack/sub.py", "pack/sub/__init__.py"} <= set(names(tree, "pack/three.py"))


def test_relative_root_gives_the_same(tree, monkeypatch):
    expected = closure(tree / "run.py", tree)
    monkeypatch.chdir(tree)
    assert closure(type(tree)("run.py"), type(tree)()) == expected
