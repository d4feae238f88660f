"""Masks of people's corrections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tnt.core.records import Completion, Mask


def corrected_masks(
    completions: Iterable[Completion], corrections: Mapping[tuple[str, str], str], tokenizer: Any
) -> list[Mask]:
    """Return one row for every completion whose correction says something else, all of it kept.

    People's texts have no generated ids, so these are tokenised. They end as the completion did:
    with its last token if the model ended by itself, else open.

    Raises:
        ValueError: The tokenizer reads a part of a correction as a special token, or not at all;
            white space it may read as other white space.
    """
    masks = []
    special = set(tokenizer.all_special_ids)
    for completion in completions:
        corrected = corrections.get((completion.input, completion.text), completion.text)
        if corrected == completion.text:
            continue
        ids = tokenizer(corrected, add_special_tokens=False).input_ids
        for token in ids:
            if token in special:
                raise ValueError(
                    f"The correction of completion {completion.prompt_id!r}, sample "
                    f"{completion.sample}, becomes {tokenizer.convert_ids_to_tokens(token)!r} in "
                    "part, which is no text that the model can say. Correct the annotation."
                )
        read = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if read.split() != corrected.split():
            raise ValueError(
                f"The correction of completion {completion.prompt_id!r}, sample "
                f"{completion.sample}, has characters that the tokenizer does not know. Correct "
                "the annotation."
            )
        if completion.finished:
            ids = [*ids, completion.completion_ids[-1]]
        masks.append(
            Mask(
                prompt_id=completion.prompt_id,
                sample=completion.sample,
                prompt_ids=completion.prompt_ids,
                completion_ids=ids,
                negative_mask=[False] * len(ids),
                kept_mask=[True] * len(ids),
                source="corrected",
            )
        )
    return masks
