"""How often, and after what, a task that touches the network is tried again."""

from __future__ import annotations

from typing import Any

RETRIES = 3
DELAYS_S: list[float] = [10, 60, 300]


def is_temporary(task: Any, task_run: Any, state: Any) -> bool:
    """Whether another try may help: not where what was asked for is refused."""
    return not isinstance(state.data, ValueError)
