"""The rooms of `tnt/`: imports run one way, and no circle is among them."""

from __future__ import annotations

import ast
from pathlib import Path

import networkx
import pytest

ROOT = Path(__file__).parent.parent
FLOORS = (
    {"core"},
    {"patches"},
    {"annotations", "losses", "models", "prompts"},
    {"detectors", "masks", "sampling", "training"},
    {"rollouts", "selftest"},
    {"base", "evaluation"},
    {"project", "report"},
    {"rounds", "stages"},
    {"commands"},
    {"cli", "flows"},
)
"""From the ground up; a room imports from those below it only."""
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("tnt", "flows")
    for path in (ROOT / folder).rglob("*.py")
}


def room(module):
    first, *below = module.split(".")
    return first if first == "flows" else below[0]


def floor(module):
    (number,) = (number for number, rooms in enumerate(FLOORS) if room(module) in rooms)
    return number


def imported(path):
    """Yield the modules that a file imports, in functions too; `from a import b` may be `a.b`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if found := next((n for n in (name, node.module) if n in MODULES), None):
                    yield found


GRAPH = networkx.DiGraph(
    (module, name) for module, path in MODULES.items() for name in imported(path)
)
GRAPH.remove_node("tnt") if "tnt" in GRAPH else None


def test_every_module_has_a_room():
    assert {room(module) for module in MODULES if module != "tnt"} == set().union(*FLOORS)


def test_no_files_import_each_other():
    assert list(networkx.simple_cycles(GRAPH)) == []


@pytest.mark.parametrize("module", sorted(set(GRAPH) - {"tnt"}))
def test_rooms_import_from_lower_rooms_only(module):
    for name in GRAPH[module]:
        assert room(name) == room(module) or floor(name) < floor(module), name
