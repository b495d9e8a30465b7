"""Blocking tasks in leased executors: ``ExecutorMiddleware``."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from slotline._checks import refuse
from slotline.leases import ExecutorBackend, LeasedExecutorManager, ManagerRegistry, run_in_lease
from taskiq_ext._base import LabelledMiddleware
from taskiq_ext._command import follow_command
from taskiq_ext._interception import current_plan, plan_of
from taskiq_ext._labels import EXECUTOR_LABELS, ExecutorOptions, executor_options
from taskiq_ext._shipping import Shipped

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from taskiq.message import TaskiqMessage
    from taskiq.result import TaskiqResult

    from taskiq_ext._interception import Plan


class ExecutorMiddleware(LabelledMiddleware[ExecutorOptions]):
    """Run the plain functions that carry ``executor`` in a lease of that manager instead of the worker's own threads.

    The event loop waits for the lease and for the function, so ``timeout`` counts both, as it does for a task that
    waits for one of the worker's threads. On killable backends (``process``, ``billiard``) the function's process is
    killed when ``timeout`` or ``time_limit`` has passed, or the message is cancelled; a thread runs on to its end.

    Managers start in the process that first needs them, and stop when the broker shuts down; one that was running
    before is left running. Workers whose ``taskiq worker`` command is killed are asked to end as it would have done.

    Args:
        managers: For each name a ``LeasedExecutorManager`` or the options of one.
        default: The manager of plain functions without the label; ``None``: they run where Taskiq runs them.

    Raises:
        InvalidOptionError: An argument is impossible.
        UnsupportedBackendError: This interpreter or installation lacks a backend.
    """

    family = EXECUTOR_LABELS

    def __init__(
        self,
        managers: ManagerRegistry | Mapping[str, LeasedExecutorManager | Mapping[str, Any]],
        default: str | None = None,
    ) -> None:
        super().__init__()
        self.managers = managers if isinstance(managers, ManagerRegistry) else ManagerRegistry(managers)
        if default is not None and default not in self.managers:
            raise refuse("default", default, "None or one of " + ", ".join(map(repr, self.managers)))
        self.default = default

    def startup(self) -> None:
        """See :class:`LabelledMiddleware`; a worker process begins to follow its command."""
        super().startup()
        if self.broker.is_worker_process:
            follow_command()

    def read(self, labels: Mapping[str, Any], function: Callable[..., Any] | None) -> ExecutorOptions | None:
        """Return the options that ``labels`` ask for."""
        return executor_options(labels, function, self.managers, self.default)

    async def admit(self, plan: Plan, options: ExecutorOptions, message: TaskiqMessage) -> None:
        """Send the run to a lease."""
        manager = self.managers.declared(options.name)
        in_this_process = manager.backend is ExecutorBackend.THREAD
        function = plan.in_a_thread() if in_this_process else Shipped(plan.real)

        async def run(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            running = self.managers.get(options.name)
            return await run_in_lease(running, function, args, kwargs, owner=message.task_id, limits=options.limits)

        plan.run_through(run, killable=manager.killable)

    def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        """End the message's plan."""
        del result
        if current_plan() is not None and (plan := plan_of(self, message)) is not None:
            plan.close(self)

    async def shutdown(self) -> None:
        """Stop the managers that were started here; work that nobody waits for any more is killed where it can be."""
        await asyncio.to_thread(self.managers.stop_all, wait=False)
