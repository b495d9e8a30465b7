"""A message that ends without its function needs none of the function's dependencies.

The receiver resolves them before it runs anything, from a graph for each task, and leaves out what the broker's
dependency context holds already. So for such a message, and in the eyes of nobody else, that context holds everything.
Where a version of the resolver looks at the context in another way, dependencies are resolved as ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskiq_ext._interception import current_plan

if TYPE_CHECKING:
    from taskiq.abc.broker import AsyncBroker


class _Everything(dict[Any, Any]):
    def __contains__(self, dependency: object) -> bool:
        return True


class _Context(dict[Any, Any]):
    def __copy__(self) -> dict[Any, Any]:  # what the resolver does first, in the asyncio task of the message
        plan = current_plan()
        return _Everything() if plan is not None and plan.ends_without_a_run else dict(self)


def skip_dependencies(broker: AsyncBroker) -> None:
    """Let messages of ``broker`` that end without their function end without its dependencies."""
    if not isinstance(broker.custom_dependency_context, _Context):
        broker.custom_dependency_context = _Context(broker.custom_dependency_context)
