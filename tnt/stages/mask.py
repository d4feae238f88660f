r"""Stage `mask`: turn flagged spans into token masks.

python -m tnt.stages.mask data/models/base data/rounds/r1/completions.parquet \
        data/rounds/r1/flags.parquet data/rounds/r1/masks.parquet data/resolved/r1/mask.yaml
"""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from tnt import artifacts, masking, models
from tnt.masking import MaskParams
from tnt.records import Completion, Flag, Mask
from tnt.runs import command


def mask(
    model_path: Path,
    completions_path: Path,
    flags_path: Path,
    masks_path: Path,
    *,
    params: MaskParams,
) -> None:
    """Write one row of token masks per completion; `model_path` gives the tokenizer."""
    tokenizer = models.load_tokenizer(model_path)
    completions = artifacts.read(completions_path, Completion)
    flags = artifacts.read(flags_path, Flag)
    masks = masking.mask_all(
        tqdm(completions, desc="mask", unit="completion"), flags, tokenizer, params
    )
    artifacts.write(masks, masks_path, Mask)


if __name__ == "__main__":
    command(mask)
