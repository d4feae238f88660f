"""The rows that travel between stages, each with its sort key; their fields are the columns.

Token ids are the model's own, as generated; nothing is ever re-tokenised, and only corrections,
which people wrote, are tokenised at all. Character offsets count Python characters of
`Completion.text`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

BASE = "base"


PromptFiles = dict[str, list[str]]
"""Prompt set -> file names in `data/prompts/<set>/`."""


Split = Literal["train", "validation", "test"]
Source = Literal["generated", "rollout", "corrected"]
End = Literal["clean", "as_is", "bound", "exhausted"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, ready for the model."""

    prompt_id: str
    """`<prompt set>/<id in its file>`."""
    prompt_set: str
    split: Split
    input: str
    """The raw input, as written in the prompt file."""
    prompt: str
    """The input after the prompt set's template and, where asked for, the chat template."""
    prompt_ids: list[int]
    reference: str | None = None

    KEY: ClassVar = ("prompt_id",)


@dataclass(frozen=True, slots=True)
class Completion:
    """What one model answered to one prompt."""

    prompt_id: str
    sample: int
    model: str
    """`base` or a round."""
    input: str
    """The prompt's raw input, which detectors read beside the text."""
    prompt_ids: list[int]
    completion_ids: list[int]
    """As generated, the end-of-sequence token included when the model emitted it."""
    text: str
    """The completion decoded without special tokens and without clean-up of spaces."""
    finished: bool
    """Whether the model ended by itself, before `max_new_tokens`."""

    KEY: ClassVar = ("prompt_id", "sample")

    @property
    def prompt_set(self) -> str:
        """The prompt set, which is the first part of the prompt's id."""
        return self.prompt_id.split("/", 1)[0]


@dataclass(frozen=True, slots=True)
class Flag:
    """One detector's finding: characters [start, end) of a completion's text."""

    prompt_id: str
    sample: int
    detector: str
    label: str
    start: int
    end: int
    text: str
    score: float

    KEY: ClassVar = ("prompt_id", "sample", "detector", "start", "end", "label")


@dataclass(frozen=True, slots=True)
class Rollout:
    """The way of the token ideal from one prompt: what is flagged is banned, the rest continued.

    A completion that nothing flags is its own.
    """

    prompt_id: str
    sample: int
    prompt_ids: list[int]
    completion_ids: list[int]
    banned: list[list[int]]
    """The tokens that were banned at each token, most often none. The last token of a rollout that
    did not become clean is itself among them."""
    rivals: list[list[int]]
    """Other likely tokens that would have been flagged there, most often none."""
    end: End
    """`clean`; `as_is`: the completion itself, not continued, as where people flagged it, who
    cannot be asked about another text; `bound`: too many bans; `exhausted`: nothing else could
    follow."""

    KEY: ClassVar = ("prompt_id", "sample")


@dataclass(frozen=True, slots=True)
class Mask:
    """Which tokens of a completion are negative and which are kept; a token may be neither.

    A row is what the model generated, or the rollout in its place; beside it there may be a row
    with what people would have had it say.
    """

    prompt_id: str
    sample: int
    prompt_ids: list[int]
    completion_ids: list[int]
    negative_mask: list[bool]
    kept_mask: list[bool]
    source: Source = "generated"
    """`corrected`: people's text. Its tokens are all kept, and learned by cross-entropy."""
    excluded: list[list[int]] = field(default_factory=list)
    """The set of negative tokens at each token of a rollout; for all other rows there is no list,
    and at a negative token the set is the token itself."""

    KEY: ClassVar = ("prompt_id", "sample", "source")

    @classmethod
    def blank(
        cls, prompt_ids: list[int], completion_ids: list[int], prompt_id: str = "", sample: int = 0
    ) -> Mask:
        """Return a mask of which no token is negative or kept."""
        none = [False] * len(completion_ids)
        return cls(prompt_id, sample, prompt_ids, completion_ids, none, none)

    def sets(self) -> list[list[int]]:
        """Return the set of negative tokens at each token, most often none."""
        own = zip(self.completion_ids, self.negative_mask, strict=True)
        return self.excluded or [[token] if hit else [] for token, hit in own]


Key = tuple[str, int]


def key_of(row: Completion | Flag | Rollout | Mask) -> Key:
    """Return which completion a row is, or is about."""
    return row.prompt_id, row.sample


Record = Prompt | Completion | Flag | Rollout | Mask
