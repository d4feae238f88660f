"""What suites are made of: what an artifact's rows must be; `validation` checks it.

Each stage has the suite of what it writes. A suite is a table of few flat columns derived from an
artifact's rows, and stock expectations of Great Expectations on them. Texts never enter it: rows
are named by their keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tnt.core.validation import Expected, Suite

SHARES = {
    "rate", "low", "high", "p_value", "exact_match", "rouge_l", "finished_share", "repetition",
    "rouge_l_to_references", "negative_mass",
}  # fmt: skip
SHARE, FINITE = (0.0, 1.0), (-1e300, 1e300)
ROUND_OFF = 1e-6


def suite(
    name: str, key: Sequence[str], rows: Sequence[Mapping[str, Any]], *expected: Expected
) -> Suite:
    """Return a suite: its name, the columns that name a row, the table, what is expected."""
    return Suite(name, tuple(key), rows, expected)


def true(column: str, remedy: str) -> Expected:
    """Expect True in every row."""
    return one_of(column, [True], remedy)


def one_of(column: str, values: list[Any], remedy: str, mostly: float = 1.0) -> Expected:
    """Expect one of `values` in at least the share `mostly` of the rows."""
    arguments = {"column": column, "value_set": values, "mostly": mostly}
    return Expected("ColumnValuesToBeInSet", remedy, arguments)


def between(column: str, low: float, high: float | None, remedy: str) -> Expected:
    """Expect numbers from `low` to `high`, both allowed; None is no bound."""
    arguments = {"column": column, "min_value": low, "max_value": high}
    return Expected("ColumnValuesToBeBetween", remedy, arguments)


def number(column: str, bounds: tuple[float, float], remedy: str) -> list[Expected]:
    """Expect numbers within bounds, none missing: to Great Expectations a NaN is missing."""
    missing = Expected("ColumnValuesToNotBeNull", remedy, {"column": column})
    return [missing, between(column, *bounds, remedy)]


def unique(key: Sequence[str], remedy: str) -> Expected:
    """Expect no two rows with the same key."""
    return Expected("CompoundColumnsToBeUnique", remedy, {"column_list": list(key)})
