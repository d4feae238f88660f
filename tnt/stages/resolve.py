"""Stage `resolve`: check params.yaml and write out what each stage of each round obeys.

    python -m tnt.stages.resolve data/resolved params.yaml

The only stage that depends on the whole of params.yaml. Stages depend on their own small file, so a
new round, a new default or a new prompt file re-runs only what obeys it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tnt.core.artifacts import write_text
from tnt.core.command import command
from tnt.core.params import dump_yaml
from tnt.project import checks, resolved


def resolve(resolved_path: Path, params_path: Path) -> None:
    """Write `<round>/<stage>.yaml` for every stage of every round."""
    loaded = checks.load(params_path)
    checks.refuse_stray_folders(loaded.rounds)
    checks.check_prompts(loaded)
    found = resolved.resolved(loaded)
    shutil.rmtree(resolved_path, ignore_errors=True)
    for (round_name, stage), values in found.items():
        write_text(dump_yaml(values), resolved_path / round_name / f"{stage}.yaml")


if __name__ == "__main__":
    command(resolve)
