"""The loop of rounds: answer, flag, train, compare, accept; until the model is clean.

    listed without a verdict, or new: a round on the last accepted one
      dvc repro detect@r      clean enough? put everything back and stop
      dvc repro evaluate@r    gate: rejected rounds are committed and stop the run
      accept                  commit and tag; the next round builds on it

Prefect adds the schedule, the form, notifications and pages around it (flows/update.py); nothing
here needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tnt.core import artifacts
from tnt.core.records import BASE, Completion, Flag, PromptFiles
from tnt.project import checks, layout, resolved
from tnt.project.sections import Project
from tnt.prompts import read_file, split_of
from tnt.rounds import ledger, listed, programs, recovery, staleness, trailers, verdicts, workspace
from tnt.rounds.programs import output

Log = Callable[[str], None]


class GateFailed(ValueError):
    """A round did not pass its gate."""


@dataclass(slots=True)
class Outcome:
    """What an update did."""

    accepted: list[str] = field(default_factory=list)
    flag_rates: dict[str, float] = field(default_factory=dict)
    """Round -> what `flag_rate` says of its corpus, answered by its parent."""
    stopped: str = ""
    """Why, in a sentence."""


def update(
    *,
    max_rounds: int = 1,
    target_flag_rate: float = 0.02,
    detectors: Sequence[str] | None = None,
    reproduce: Callable[[str], None] = programs.reproduce,
    on_accepted: Callable[[str], None] = lambda name: None,
    log: Log = print,
    run: str = trailers.BY_HAND,
) -> Outcome:
    """Train rounds until the model is clean, nothing is gained, or `max_rounds` are accepted.

    Rounds that params.yaml lists without a verdict come first, in their order. Then new ones are
    added, on the prompt files that no accepted round learned from, or else on those of the last.

    Args:
        max_rounds: Rounds that are trained at most.
        target_flag_rate: A corpus of which no prompt set is flagged more often is clean.
        detectors: What a new round flags besides its parent's detectors. None: nothing else; on the
            base, what the last listed round flags, or all that is defined if there is none.
        reproduce: Runs `dvc repro` on a stage.
        on_accepted: Is told the name of each accepted round.
        log: Is given lines for people.
        run: What the commits say did it.

    Raises:
        GateFailed: A round was rejected; it is committed, with the reason, and not tagged.
        ValueError: Files are changed, an accepted round is out of date, a stage failed, or another
            process runs dvc. What the update had changed is put back.
    """
    with programs.alone(f"the update {run}"):
        recovery.recover(log)
        _prepare(reproduce, log, run)
        outcome = Outcome()
        while len(outcome.accepted) < max_rounds and not outcome.stopped:
            name, later = _choose()
            with recovery.guarded(name, later, run, log) as note:
                _list(name, later, detectors)
                if not (reason := _tried_before(name)):
                    reproduce(f"detect@{name}")
                    outcome.flag_rates[name] = rate = flag_rate(name)
                    log(f"{name}: {rate:.1%} of its corpus is flagged.")
                    if rate <= target_flag_rate:
                        reason = f"{rate:.1%} is flagged, no more than {target_flag_rate:.1%}."
                if not reason:
                    reproduce(f"evaluate@{name}")
                    if recovery.edited(note):
                        raise ValueError(
                            f"{layout.PARAMS} was edited during the run, and {name} would be "
                            "committed with that. Commit what you want to keep, then begin again."
                        )
                    reason = _judge(name, run)
            if reason:
                outcome.stopped = reason
            else:
                log(f"Accepted {name} as {trailers.tag(name)}.")
                outcome.accepted.append(name)
                on_accepted(name)
        outcome.stopped = outcome.stopped or f"max_rounds is {max_rounds}."
        log(f"Stopped: {outcome.stopped}")
    return outcome


def flag_rate(name: str) -> float:
    """Return the share of a round's corpus that its detectors flag, where that is highest.

    2 of 10 replies and none of 90 summaries flagged is 0.2: no prompt set hides another's fault.
    """
    folder = layout.ROUNDS / name
    flags = artifacts.read(folder / "flags.parquet", Flag)
    flagged = {(f.prompt_id, f.sample) for f in flags}
    hits: dict[str, list[bool]] = {}
    for c in artifacts.read(folder / "completions.parquet", Completion):
        hits.setdefault(c.prompt_set, []).append((c.prompt_id, c.sample) in flagged)
    return max(sum(of_set) / len(of_set) for of_set in hits.values())


def _prepare(reproduce: Callable[[str], None], log: Log, run: str) -> None:
    """Check that a commit can be made and built upon; bring the base up to date."""
    workspace.refuse_changes()
    output("git", "var", "GIT_COMMITTER_IDENT")
    staleness.refuse_outdated()
    if names := _outdated_rejects():
        with recovery.guarded("rejected rounds", [], run, log):
            ledger.take_out(names)
        log(f"Took out {', '.join(names)}, rejected and out of date; git and the cache keep it.")
    if staleness.base_is_outdated():
        with recovery.guarded("the base", [], run, log):
            log("The base is not up to date: making it first.")
            reproduce("respond_base")
            workspace.commit_lock("Bring the base up to date")


def _outdated_rejects() -> list[str]:
    """Return the rejected rounds that are out of date, which `compare` would train again."""
    parents = {round_.parent for round_ in checks.load().rounds.values()}
    return [
        name
        for name in staleness.outdated_rounds()
        if name not in parents and verdicts.verdict(name) == "rejected"
    ]


def _choose() -> tuple[str, list[str]]:
    """Return the round to work on, new or the first without a verdict, and those listed after."""
    loaded = checks.load()
    listed = [*loaded.rounds]
    for i, name in enumerate(listed):
        if verdicts.verdict(name) is None:
            parent = loaded.rounds[name].parent
            if parent != BASE and not verdicts.accepted(parent):
                raise ValueError(
                    f"The round {name!r} builds on {parent!r}, which was rejected: "
                    f"{verdicts.rejection(parent)}. Give {name!r} another parent, or remove it."
                )
            later = listed[i + 1 :]
            if built := [other for other in later if verdicts.accepted(other)]:
                raise ValueError(
                    f"The round {name!r} has no verdict, but {built[0]!r} after it is accepted. "
                    f"Remove {name!r}, and add it again under another name if it is still wanted."
                )
            return name, later
    return verdicts.next_name(loaded), []


def _list(name: str, later: Sequence[str], detectors: Sequence[str] | None) -> None:
    """Make a round the last one in params.yaml."""
    loaded = checks.load()
    if name in loaded.rounds:
        if later:
            with listed.edited_params() as params:
                for other in later:
                    listed.take_out(params, other)
            listed.prune()
        return
    parent = verdicts.last_accepted(loaded)
    if detectors is None:
        like = next(reversed(loaded.rounds), None) if parent == BASE else parent
        detectors = loaded.rounds[like].detectors if like else [*loaded.detectors]
    listed.add(name, parent=parent, detectors=[*detectors], prompts=_prompts(loaded, parent))


def _prompts(loaded: Project, parent: str) -> PromptFiles:
    """Return what a new round learns from: of each set the files that are new, else the last."""
    chain = [parent, *loaded.ancestors(parent)] if parent != BASE else []
    last = loaded.rounds[parent].prompts if chain else loaded.evaluate.prompts
    chosen = {}
    for prompt_set in last:
        if listed.learnable(loaded, prompt_set):
            known = {file for r in chain for file in loaded.rounds[r].prompts.get(prompt_set, [])}
            shares = loaded.prompt_sets[prompt_set].shares
            new = [
                path.name
                for path in sorted((layout.PROMPTS / prompt_set).glob("*.jsonl"))
                if path.name not in known
                and any(split_of(row.input, shares) == "train" for row in read_file(path))
            ]
            chosen[prompt_set] = new or last[prompt_set]
    return chosen


def _tried_before(name: str) -> str:
    """Return why not to try a round: one that was rejected was the same in all that it obeys."""
    loaded = checks.load()
    obeyed = resolved.resolved(loaded)

    def of(round_name: str) -> dict[str, Any]:
        stages = {stage: values for (r, stage), values in obeyed.items() if r == round_name}
        return {**stages, "parent": loaded.rounds[round_name].parent}

    for other in loaded.rounds:
        if other != name and verdicts.verdict(other) == "rejected" and of(other) == of(name):
            return (
                f"another round would be what {other} was, and that was rejected: "
                f"{verdicts.rejection(other)}. Change prompts, params or detectors."
            )
    return ""


def _judge(name: str, run: str) -> str:
    """Accept or reject an evaluated round; return why to stop, if it gained nothing.

    Raises:
        GateFailed: It was rejected by its gate.
    """
    metrics = listed.read_metrics(name)
    if not metrics.gate.passed:
        reasons = metrics.gate.reasons
        ledger.reject(name, reasons, run=run)
        raise GateFailed(f"The round {name!r} failed its gate: {reasons}.")
    counts = {
        detector: (change.before.flagged, change.after.flagged)
        for detector, change in metrics.learned.items()
    }
    if all(after >= before for before, after in counts.values()):
        said = ", ".join(f"{d} {before} -> {after}" for d, (before, after) in counts.items())
        ledger.reject(name, f"nothing gained: flagged {said}", run=run)
        return f"{name} gained nothing: flagged test completions {said}."
    ledger.accept(name, run=run)
    return ""
