"""Ban and continue: from every completion the way that the token ideal would take.

What is flagged is cut before the token that completes it, that token is banned there, and the
completion goes on, each token looked at before it is taken, until nothing is flagged. The prefixes
on this way are those that a model will pass which never says what is flagged: its bans are the
second and third faults that a single look does not see, its other tokens the ones that matter most
to be kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from tnt import models
from tnt.core.records import Completion, End, Flag, Key, Rollout, key_of
from tnt.detectors import Detect, running
from tnt.masks.alignment import Pieces, token_spans
from tnt.models import decode
from tnt.rollouts.params import RolloutParams
from tnt.sampling import SamplingParams, Start, continued


def walk(
    model: Any,
    tokenizer: Any,
    completions: Sequence[Completion],
    detectors: Mapping[str, Detect],
    params: RolloutParams,
    sampling: SamplingParams,
) -> list[Rollout]:
    """Return the rollout of every completion.

    Where a detector only recalls what people flagged, its completions are taken as they are.

    Args:
        model: Gave the completions; in evaluation mode.
        tokenizer: Its own.
        completions: Where the rollouts begin.
        detectors: By name.
        params: How far.
        sampling: How the completions were drawn, and are continued.
    """
    torch.manual_seed(sampling.seed)
    judging = running.judging(detectors)
    flags = running.find_flags(detectors, completions, title="detect")
    paths = {key_of(c): _Path(c, params.max_bans) for c in completions}
    for key in {key_of(flag) for flag in flags if flag.detector not in judging}:
        paths[key].end = "as_is"
    alike = models.is_encoder_decoder(model)
    going = [path for path in paths.values() if path.end is None]
    going = _judged(going, flags, judging, tokenizer)
    with tqdm(total=len(going), desc="ban and continue", unit="reply") as bar:
        while going:
            for batch in _batches(going, sampling.batch_size, alike=alike):
                _continue(model, tokenizer, batch, judging, sampling)
            left = [path for path in going if path.end is None]
            flags = running.find_flags(judging, [path.now for path in left])
            left = _judged(left, flags, judging, tokenizer)
            bar.update(len(going) - len(left))
            going = left
    return [path.rollout() for path in paths.values()]


def _judged(
    paths: Sequence[_Path],
    flags: Sequence[Flag],
    detectors: Mapping[str, Detect],
    tokenizer: Any,
) -> list[_Path]:
    """Cut the paths in which something was found and return them; end the others."""
    flags = [flag for flag in flags if flag.detector in detectors and flag.text.strip()]
    ends = completed([path.now for path in paths], flags, detectors, tokenizer)
    for path in paths:
        if key_of(path.now) in ends:
            path.ban(ends[key_of(path.now)])
        else:
            path.end = "clean"
    return [path for path in paths if path.end is None]


Find = Callable[[Completion, int], bool]
"""(a text, how many of its characters were there before) -> whether something new is flagged."""


@dataclass(slots=True)
class _Path:
    """A rollout in the making."""

    now: Completion
    """As it is so far; up to `place` nothing is flagged."""
    left: int
    """How many more tokens may be banned."""
    end: End | None = None
    bans: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    """Place -> the tokens banned there."""
    place: int = 0
    """Where the last token was banned."""

    def ban(self, place: int) -> None:
        """Ban the token that stands at a place, or end there."""
        self.place = place
        self._add(place, self.now.completion_ids[place])
        if self.left <= 0:
            self._end("bound")

    def _add(self, place: int, token: int) -> None:
        self.bans[place].add(token)
        self.left -= 1

    def allows(self, added: list[int], token: int, find: Find, tokenizer: Any) -> bool:
        """Return whether a token may come next; ban it there if something would be flagged by it.

        At the last ban that is left everything is allowed: what is flagged then ends the rollout.
        """
        before = [*self.now.completion_ids[: self.place], *added]
        text = decode(tokenizer, [*before, token])
        if self.left <= 1 or not find(replace(self.now, text=text), len(decode(tokenizer, before))):
            return True
        self._add(len(before), token)
        return False

    def go_on(self, ids: list[int], tokenizer: Any, *, finished: bool) -> None:
        """Take what follows the place instead of what was banned."""
        if ids[0] in self.bans[self.place]:
            self._end("exhausted")
            return
        whole = [*self.now.completion_ids[: self.place], *ids]
        text = decode(tokenizer, whole)
        self.now = replace(self.now, completion_ids=whole, text=text, finished=finished)

    def _end(self, end: End) -> None:
        ids = self.now.completion_ids[: self.place + 1]
        self.now, self.end = replace(self.now, completion_ids=ids), end

    def rollout(self) -> Rollout:
        """Return what became of it."""
        assert self.end is not None, "a rollout is returned at its end"
        ids = self.now.completion_ids
        return Rollout(
            prompt_id=self.now.prompt_id,
            sample=self.now.sample,
            prompt_ids=self.now.prompt_ids,
            completion_ids=ids,
            banned=[sorted(self.bans.get(place, ())) for place in range(len(ids))],
            rivals=[[] for _ in ids],
            end=self.end,
        )


def _continue(
    model: Any,
    tokenizer: Any,
    paths: Sequence[_Path],
    detectors: Mapping[str, Detect],
    sampling: SamplingParams,
) -> None:
    """Let the model go on from where each path was cut, without what detectors flag."""

    def find(row: Completion, known: int) -> bool:
        return any(flag.end > known for flag in running.find_flags(detectors, [row]))

    starts = [
        Start(
            prompt_ids=path.now.prompt_ids,
            prefix=path.now.completion_ids[: path.place],
            limit=sampling.limit(path.now.prompt_set) - path.place,
            banned=frozenset(path.bans[path.place]),
            allows=partial(path.allows, find=find, tokenizer=tokenizer),
        )
        for path in paths
    ]
    end_ids = models.end_ids(model)
    for path, ids in zip(paths, continued(model, starts, sampling), strict=True):
        path.go_on(ids, tokenizer, finished=ids[-1] in end_ids)


def _batches(paths: Sequence[_Path], size: int, *, alike: bool) -> Iterator[list[_Path]]:
    """Yield paths of similar length; where they must be `alike`, of equally long completions."""

    def length(path: _Path) -> tuple[int, int]:
        return path.place if alike else 0, len(path.now.prompt_ids) + path.place

    batch: list[_Path] = []
    for path in sorted(paths, key=length, reverse=True):
        if batch and (len(batch) == size or (alike and batch[0].place != path.place)):
            yield batch
            batch = []
        batch.append(path)
    if batch:
        yield batch


def as_is(completions: Sequence[Completion]) -> list[Rollout]:
    """Return the rollouts of completions that are not to be continued: themselves."""
    return [_Path(completion, left=0, end="as_is").rollout() for completion in completions]


def completed(
    completions: Sequence[Completion],
    flags: Sequence[Flag],
    detectors: Mapping[str, Detect],
    tokenizer: Any,
) -> dict[Key, int]:
    """Return by key where in each flagged completion stands the token that completes a finding.

    That is the first token up to which the text has a finding that overlaps the first one of the
    whole: in "I'm sorry" not "I", with which other sentences begin too, but "sorry". Where no
    prefix has one, it is the last token.

    Args:
        completions: Those that are looked at.
        flags: Every finding in them.
        detectors: Which found them, by name.
        tokenizer: The one whose ids they are.
    """
    first: dict[Key, int] = {}
    for flag in flags:
        if flag.text.strip():
            first[key_of(flag)] = min(flag.start, first.get(key_of(flag), flag.start))
    pieces = Pieces.of(tokenizer)
    looked, found = {}, {}
    for completion in completions:
        if (start := first.get(key_of(completion))) is not None:
            spans = token_spans(tokenizer, completion.completion_ids, completion.text, pieces)
            place = next(i for i, (_, end) in enumerate(spans) if end > start)
            looked[key_of(completion)] = completion, place
    while looked:
        prefixes = []
        for key, (completion, place) in [*looked.items()]:
            if place == len(completion.completion_ids) - 1:
                found[key] = place
                del looked[key]
            else:
                ids = completion.completion_ids[: place + 1]
                text = decode(tokenizer, ids)
                prefixes.append(replace(completion, completion_ids=ids, text=text))
                looked[key] = completion, place + 1
        for flag in running.find_flags(detectors, prefixes):
            key = key_of(flag)
            if flag.end > first[key] and key in looked:
                _, following = looked.pop(key)
                found[key] = following - 1
    return found
