"""The names of the losses."""

from __future__ import annotations

from typing import Literal

LossName = Literal["tnff", "tnrr", "tnrf", "tnfll", "tnrll", "ul", "nl", "sft_clean"]
