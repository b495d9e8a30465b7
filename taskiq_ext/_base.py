"""What the middlewares share: labels read once for each task and once more for a message that brings its own."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from taskiq.abc.middleware import TaskiqMiddleware
from taskiq.brokers.inmemory_broker import InMemoryBroker
from taskiq.events import TaskiqEvents
from taskiq.labels import parse_label

from slotline._checks import of_task, refuse
from slotline.errors import InvalidOptionError
from slotline.metrics._telling import begin as begin_metrics
from taskiq_ext._interception import check_registrations, function_of, intercept, plan_for
from taskiq_ext._labels import from_wire, pick
from taskiq_ext._skipping import skip_dependencies
from taskiq_ext._support import assert_supported

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from taskiq.abc.broker import AsyncBroker
    from taskiq.message import TaskiqMessage

    from slotline.caches import Hit
    from taskiq_ext._interception import AnyTask, Plan

Options = TypeVar("Options")

_TRAVELS = (str, int, float, bool, bytes)


class _Known(NamedTuple, Generic[Options]):
    """What a task's own labels ask for.

    Attributes:
        labels: All of the task's, as its messages bring them; none where some are changed on the way.
        own: Those of the middleware's family.
        options: What they ask for; ``None``: leave the task alone.
    """

    task: AnyTask
    labels: dict[str, Any]
    own: dict[str, Any]
    options: Options | None


class LabelledMiddleware(TaskiqMiddleware, Generic[Options]):
    """A middleware that acts on the tasks that carry its labels, and costs the others next to nothing.

    The labels of the decorator are checked when the task is registered, those of a call when it is sent. A message
    that arrives with bad labels all the same ends with the error as its result.
    """

    family: tuple[str, ...]
    enabled = True

    def __init__(self) -> None:
        super().__init__()
        self._served: AsyncBroker | None = None
        self._known: dict[str, _Known[Options]] = {}

    @abstractmethod
    def read(self, labels: Mapping[str, Any], function: Callable[..., Any] | None) -> Options | None:
        """Return the options that ``labels`` ask for; ``None``: leave the task alone."""

    @abstractmethod
    def admit(self, plan: Plan, options: Options, message: TaskiqMessage) -> Coroutine[Any, Any, None] | None:
        """Decide what runs for a message, at once or once what it returns is awaited; an error becomes the result."""

    def serves_old(self, task: AnyTask, message: TaskiqMessage) -> bool:  # noqa: ARG002 - for those who do
        """Whether the message may end with an old value of the cache."""
        return False

    async def old_value(self, plan: Plan, message: TaskiqMessage) -> Hit | None:  # noqa: ARG002 - for those who have one
        """Return the last value that is known for a message, however old."""
        return None

    def others(self) -> list[LabelledMiddleware[Any]]:
        """Return the broker's other middlewares of this package."""
        return [one for one in self.broker.middlewares if isinstance(one, LabelledMiddleware) and one is not self]

    def set_broker(self, broker: AsyncBroker) -> None:
        """Serve ``broker``, whose tasks' labels are checked from now on.

        Raises:
            InvalidOptionError: A task has bad labels, the middleware serves another broker already, or the broker has
                one of its kind.
            UnsupportedFrameworkError: The installed Taskiq lacks a part that is needed.
        """
        assert_supported()
        begin_metrics()
        if any(isinstance(other, LabelledMiddleware) and other.family == self.family for other in broker.middlewares):
            name = type(self).__name__  # two would read the same labels, and take two slots for each message
            raise refuse("middlewares", f"a second {name}", f"one for each broker: a {name} is there already")
        if self._served is None:
            check_registrations(broker, self._check)
            skip_dependencies(broker)
            if not _runs_shutdown_hooks(broker):
                broker.add_event_handler(TaskiqEvents.WORKER_SHUTDOWN, lambda _state: self.shutdown())
            self._served = broker
        elif self._served is not broker:
            raise refuse(
                "broker", broker, f"the broker that this {type(self).__name__} serves; make one for each broker"
            )
        super().set_broker(broker)

    def startup(self) -> None:
        """Check the shared tasks too, which are registered past the broker.

        Raises:
            InvalidOptionError: A task has bad labels.
        """
        for task in self.broker.get_all_tasks().values():
            with of_task(task.task_name):
                self._check(function_of(task), task.labels)
            intercept(task)

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage | Coroutine[Any, Any, TaskiqMessage]:
        """Check the labels of this call.

        Raises:
            InvalidOptionError: A label is unknown or has an impossible value; nothing is sent.
        """
        if message.labels:
            self.options_to_send(message)
        return message

    def options_to_send(self, message: TaskiqMessage) -> Options | None:
        """Return the options that a message on its way out asks for.

        Raises:
            InvalidOptionError: A label is unknown or has an impossible value.
        """
        task = self.broker.find_task(message.task_name)
        labels = pick(self.family, message.labels)
        if task is not None:
            known = self._known_of(task)
            own = known.own
            if all(own.get(name) is value or str(own.get(name)) == value for name, value in labels.items()):
                return known.options
        types = message.labels_types or {}
        given = {name: _parsed(name, value, types.get(name)) for name, value in labels.items()}
        if task is None:
            return self.read(from_wire(given), None)
        return self.read(from_wire({**own, **given}), function_of(task))

    def options_of(self, task: AnyTask) -> Options | None:
        """Return the options that a task's own labels ask for."""
        return self._known_of(task).options

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage | Coroutine[Any, Any, TaskiqMessage]:
        """Decide what runs for a message that carries labels of this middleware, or whose task does."""
        task = self.broker.find_task(message.task_name)
        if task is None or not self.enabled:
            return message
        known = self._known_of(task)
        if known.options is None and not message.labels:
            return message
        plan: Plan | None = None
        try:
            options = self._options_for(known, message)
            if options is None:
                return message
            plan = plan_for(self, task, message)
            admitting = None if plan.outcome is not None else self.admit(plan, options, message)
        except Exception as error:  # noqa: BLE001 - an exception out of pre_execute would lose the message
            plan, admitting = plan or plan_for(self, task, message), None
            plan.fail(error)
        if admitting is not None:
            return _when(admitting, plan, message)
        plan.acknowledge_when_saved(message)
        return message

    def options_for(self, task: AnyTask, message: TaskiqMessage) -> Options | None:
        """Return the options of a message that has arrived.

        Raises:
            InvalidOptionError: A label is unknown or has an impossible value.
        """
        return self._options_for(self._known_of(task), message)

    def _options_for(self, known: _Known[Options], message: TaskiqMessage) -> Options | None:
        if message.labels == known.labels:  # it was sent with nothing but the task's own
            return known.options
        own, given = known.own, pick(self.family, message.labels)
        if any(own.get(name) != value and str(own.get(name)) != value for name, value in given.items()):
            return self.read(from_wire({**own, **given}), function_of(known.task))
        return known.options

    def _known_of(self, task: AnyTask) -> _Known[Options]:
        known = self._known.get(task.task_name)
        if known is not None and known.task is task:
            return known
        own, labels, options = pick(self.family, task.labels), dict(task.labels), None
        if not all(isinstance(value, _TRAVELS) for value in labels.values()):
            labels = {}
        try:
            options = self.read(own, function_of(task))
        except InvalidOptionError:  # a shared task, registered past this broker: each message says so in its result
            own = labels = {}
        known = self._known[task.task_name] = _Known(task, labels, own, options)
        return known

    def _check(self, function: Callable[..., Any], labels: Mapping[str, Any]) -> None:
        self.read(pick(self.family, labels), function)


async def _when(admitting: Coroutine[Any, Any, None], plan: Plan, message: TaskiqMessage) -> TaskiqMessage:
    try:
        await admitting
    except Exception as error:  # noqa: BLE001 - see pre_execute
        plan.fail(error)
    plan.acknowledge_when_saved(message)
    return message


def _runs_shutdown_hooks(broker: AsyncBroker) -> bool:
    # The InMemoryBroker of Taskiq 0.12 calls event handlers, but no middleware, when it shuts down.
    return not isinstance(broker, InMemoryBroker) or "middlewares" in InMemoryBroker.shutdown.__code__.co_names


def _parsed(name: str, value: Any, label_type: int | None) -> Any:
    try:
        return parse_label(value, label_type)
    except ValueError:
        raise refuse(name, value, "of the type that it was sent with") from None
