"""An executor seen with other limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from slotline.workers.jobs import ApplyResult
from slotline.workers.options import TaskLimits
from slotline.workers.supervisor import Supervisor
from slotline.workers.tasks import TaskMethods


class OptionsView(TaskMethods):
    """An executor with other limits; it neither owns nor ends anything."""

    def __init__(
        self, supervisor: Callable[[], Supervisor], hand_in: Callable[..., ApplyResult], limits: TaskLimits
    ) -> None:
        self._find_supervisor, self._pass_on, self._limits = supervisor, hand_in, limits

    def _supervisor(self) -> Supervisor:
        return self._find_supervisor()

    def _hand_in(self, *args: Any, **kwargs: Any) -> ApplyResult:
        return self._pass_on(*args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002 - as in Executor
        """Refuse: the executor is ended by its owner.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("A view made by options() cannot shut its executor down; call shutdown() on the executor.")

    def __exit__(self, *_: object) -> None:
        return None
