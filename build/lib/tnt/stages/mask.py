r"""Stage `mask`: turn flagged spans into token masks.

python -m tnt.stages.mask data/models/base data/rounds/r1/completions.parquet \
        data/rounds/r1/flags.parquet data/rounds/r1/masks.parquet data/resolved/r1/mask.yaml

Where people corrected a completion, and the round is to learn from that, their text is a row too.
"""

from __future__ import annotations

from pathlib import Path

from pydantic.dataclasses import dataclass
from tqdm import tqdm

from tnt import artifacts, corrections, expectations, masking, models, validation
from tnt.annotations import read_corrections
from tnt.masking import MaskParams
from tnt.params import STRICT
from tnt.records import Completion, Flag, Mask
from tnt.runs import command


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class MaskStageParams:
    """How spans become masks, and whose corrections are learnt from."""

    mask: MaskParams
    corrections: dict[str, str]
    """Annotation file -> sha256, of the round's detectors that are corrective."""
    negative_share: tuple[float, float]
    """Between which shares of the completions' tokens may be negative."""


def mask(
    model_path: Path,
    completions_path: Path,
    flags_path: Path,
    masks_path: Path,
    *,
    params: MaskStageParams,
) -> None:
    """Write one row of token masks per completion, and one per correction of a completion.

    `model_path` gives the tokenizer.
    """
    tokenizer = models.load_tokenizer(model_path)
    completions = artifacts.read(completions_path, Completion)
    flags = artifacts.read(flags_path, Flag)
    masks = masking.mask_all(
        tqdm(completions, desc="mask", unit="completion"), flags, tokenizer, params.mask
    )
    if params.corrections:
        corrected = corrections.corrected_masks(
            completions, read_corrections(params.corrections), tokenizer
        )
        print(f"{len(corrected)} of the {len(completions)} completions have a correction.")
        masks += corrected
    suite = expectations.masks(masks, completions, flags, params.negative_share)
    validation.validate(suite, masks_path)
    artifacts.write(masks, masks_path, Mask)


if __name__ == "__main__":
    command(mask)
