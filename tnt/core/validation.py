"""Check an artifact with Great Expectations before it becomes an output.

    validation.validate(flags_suite(...), Path("data/rounds/r1/flags.parquet"))

The result is kept beside the artifact as `<suite>.validation.json`, the same bytes for the same
data. Great Expectations takes seconds to import, so nothing imports it before it is needed.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tnt.core.artifacts import write_text

SUFFIX = ".validation.json"
EXAMPLES = 5
"""Offending rows that a failure names."""

_KEPT = {
    "observed_value", "element_count", "unexpected_count", "unexpected_percent",
    "partial_unexpected_index_list",
}  # fmt: skip
"""What is kept of an expectation's result."""


@dataclass(frozen=True, slots=True)
class Expected:
    """One expectation of Great Expectations, and what to do where it fails."""

    kind: str
    """The class's name without its first word, `ColumnValuesToBeInSet`."""
    remedy: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Suite:
    """What is expected of one artifact."""

    name: str
    key: tuple[str, ...]
    """Columns that name a row."""
    rows: Sequence[Mapping[str, Any]]
    """Flat; there may be none."""
    expected: Sequence[Expected]

    def columns(self) -> list[str]:
        """Return the key's columns and those that an expectation names."""
        named = [
            name
            for one in self.expected
            for name in (*one.arguments.get("column_list", ()), one.arguments.get("column"))
            if name
        ]
        return list(dict.fromkeys([*self.key, *named]))


def validate(suite: Suite, artifact: Path, folder: Path | None = None) -> None:
    """Check the suite of an artifact that is about to be written, and write down the result.

    Args:
        suite: What is expected.
        artifact: Where the artifact will be, for the error.
        folder: Where the result goes, beside the artifact by default.

    Raises:
        ValueError: An expectation is not met; names it, the first rows at fault and the remedy.
    """
    found = result(suite)
    failed = [one for one in found["results"] if not one["success"]]
    if failed:
        raise ValueError(_failure(suite, failed[0], artifact, len(failed) - 1))
    text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(text + "\n", (folder or artifact.parent) / f"{suite.name}{SUFFIX}")


def result(suite: Suite) -> dict[str, Any]:
    """Return what Great Expectations finds, without anything that differs between two runs."""
    definition, gx_suite, frame = batch_definition(suite, suite.name, new_context())
    batch = definition.get_batch(batch_parameters={"dataframe": frame})
    found = batch.validate(gx_suite, result_format=result_format(suite)).to_json_dict()
    results = []
    for one in sorted(found["results"], key=lambda one: _meta(one)["number"]):
        config = one["expectation_config"]
        arguments = {k: v for k, v in config["kwargs"].items() if k != "batch_id"}
        kept = {k: v for k, v in one["result"].items() if k in _KEPT and v not in (None, [])}
        if message := _exception(one["exception_info"]):
            kept["exception"] = message
        line = {"expectation": config["type"], **arguments, "success": one["success"], **kept}
        results.append({**line, "remedy": _meta(one)["remedy"]})
    return {
        "suite": suite.name,
        "success": bool(found["success"]),
        "rows": len(suite.rows),
        "results": results,
    }


def new_context() -> Any:
    """Return a context of Great Expectations that stores and prints nothing, without network."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    return context


def batch_definition(suite: Suite, name: str, context: Any) -> tuple[Any, Any, Any]:
    """Return Great Expectations' batch definition and suite, and the data frame, of a suite.

    Args:
        suite: What is expected.
        name: Of the data in the context.
        context: Of Great Expectations.
    """
    import great_expectations as gx
    import great_expectations.expectations as gxe
    import pandas as pd

    expectations = [
        getattr(gxe, f"Expect{one.kind}")(**one.arguments, meta={"number": n, "remedy": one.remedy})
        for n, one in enumerate(suite.expected)
    ]
    gx_suite = gx.ExpectationSuite(name=name, expectations=expectations)
    asset = context.data_sources.add_pandas(name).add_dataframe_asset(name)
    frame = pd.DataFrame(list(suite.rows), columns=suite.columns())
    return asset.add_batch_definition_whole_dataframe("all"), gx_suite, frame


def result_format(suite: Suite) -> dict[str, Any]:
    """Return what Great Expectations is to report of rows at fault: their keys, a few of them."""
    return {
        "result_format": "SUMMARY",
        "unexpected_index_column_names": list(suite.key),
        "partial_unexpected_count": EXAMPLES,
    }


def _meta(one: Mapping[str, Any]) -> dict[str, Any]:
    return one["expectation_config"]["meta"]


def _exception(info: Mapping[str, Any]) -> str | None:
    """Return why an expectation could not be evaluated, if so."""
    infos = [info] if "raised_exception" in info else list(info.values())
    return next((i["exception_message"] for i in infos if i["raised_exception"]), None)


def _failure(suite: Suite, failed: Mapping[str, Any], artifact: Path, others: int) -> str:
    """Say what is not met, where, and what to do."""
    column = failed.get("column") or ", ".join(failed.get("column_list", suite.key))
    said = f"{artifact} was not written: the suite {suite.name!r} fails {failed['expectation']}"
    said += f" on {column!r}"
    if "exception" in failed:
        said += f", which could not be evaluated ({failed['exception']})"
    elif "unexpected_count" in failed:
        rows = [
            "/".join(str(row[name]) for name in suite.key)
            for row in failed.get("partial_unexpected_index_list", [])[:EXAMPLES]
        ]
        said += f" in {failed['unexpected_count']} of {len(suite.rows)} rows: {', '.join(rows)}"
    else:
        said += f", which is {failed.get('observed_value')}"
    more = f" Other expectations that fail: {others}." if others else ""
    return f"{said}. {failed['remedy']}{more}"
