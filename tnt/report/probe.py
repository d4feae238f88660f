"""People's labels of test completions: an independent look at what a detector measures.

    {"prompt_id": "replies/r001", "text": "I'm sorry, but ...", "flag": true}

A label belongs to a text, not to a model: it counts for every model that answers with exactly this
text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tnt.core import jsonl
from tnt.core.errors import shortened
from tnt.core.hashes import refuse_changed
from tnt.core.records import Completion
from tnt.evaluation.metrics import Rate

Labels = dict[tuple[str, str], bool]
"""(prompt_id, text) -> whether a person flagged it."""


def read(pinned: Mapping[str, str]) -> Labels:
    """Return the labels of the pinned files, `{path: sha256}`.

    Raises:
        ValueError: A file changed after it was pinned, or a line is no label.
    """
    labels: Labels = {}
    refuse_changed(pinned)
    for name in pinned:
        for where, line in jsonl.lines(jsonl.read_text(Path(name)), name):
            try:
                row = json.loads(line)
                prompt_id, text, flag = row["prompt_id"], row["text"], row["flag"]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise ValueError(
                    f"{where} is no label ({type(error).__name__}: {error}). Write "
                    '{"prompt_id": ..., "text": ..., "flag": true or false}.'
                ) from None
            if not isinstance(flag, bool):
                seen = shortened(flag)
                raise ValueError(f"{where}: flag is {seen}. Write true or false.")
            if labels.get((str(prompt_id), str(text)), flag) != flag:
                raise ValueError(f"{where} contradicts an earlier label. Keep one.")
            labels[str(prompt_id), str(text)] = flag
    return labels


def rate(labels: Labels, completions: Sequence[Completion]) -> Rate:
    """Return how many of the labelled completions people flagged."""
    found = [labels[c.prompt_id, c.text] for c in completions if (c.prompt_id, c.text) in labels]
    return Rate(sum(found), len(found))


def own(labels: Labels, answers: Mapping[str, Sequence[Completion]]) -> dict[str, int]:
    """Return how many labelled answers each model gave that none before it gave.

    0: all that is known of the model is how it answers where it did not change.
    """
    found: dict[str, int] = {}
    seen: set[tuple[str, str]] = set()
    for model, completions in answers.items():
        given = {(c.prompt_id, c.text) for c in completions} & labels.keys()
        found[model] = len(given - seen)
        seen |= given
    return found
