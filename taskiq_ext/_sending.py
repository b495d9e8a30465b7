"""Hits on the sending side: the message is answered, and not sent."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

from taskiq.labels import parse_label
from taskiq.result import TaskiqResult
from taskiq.result_backends.dummy import DummyResultBackend

from taskiq_ext._labels import CACHE_LABELS, EXECUTOR_LABELS, POOL_LABELS

if TYPE_CHECKING:
    from taskiq.abc.broker import AsyncBroker
    from taskiq.message import BrokerMessage, TaskiqMessage

    from taskiq_ext._interception import AnyTask

logger = logging.getLogger(__name__)

_OURS = frozenset({*CACHE_LABELS, *POOL_LABELS, *EXECUTOR_LABELS})


class _Answer(NamedTuple):
    task_id: str
    result: TaskiqResult[Any]


# Set in pre_send and read in the kick that follows it, both in one coroutine.
_answer: ContextVar[_Answer | None] = ContextVar("slotline_taskiq_answer", default=None)


def can_answer(broker: AsyncBroker, task: AnyTask, message: TaskiqMessage) -> bool:
    """Whether its answer is all that ``message`` is for, and a sender could read it.

    A label that is neither the task's nor one of ours may tell a worker's middleware what is to follow, as those of a
    pipeline's steps do.
    """
    known = message.labels.keys() <= task.labels.keys() | _OURS
    return known and not isinstance(broker.result_backend, DummyResultBackend)


def answer(message: TaskiqMessage, value: Any, label: str) -> None:
    """Let the kick of ``message`` store ``value`` as its result, under its own id, instead of sending it."""
    types = message.labels_types or {}
    labels = {name: parse_label(text, types.get(name)) for name, text in message.labels.items()}
    result = TaskiqResult[Any](is_err=False, return_value=value, execution_time=0.0, labels={**labels, label: True})
    _answer.set(_Answer(message.task_id, result))


def answer_before_kicking(broker: AsyncBroker) -> None:
    """Put the check for an answer before ``broker.kick``, where a message can still be kept back."""
    kick = broker.kick

    async def kick_or_answer(message: BrokerMessage) -> None:
        ready = _answer.get()
        if ready is not None:
            _answer.set(None)
            if ready.task_id == message.task_id and await _stored(broker, ready):
                logger.debug("Task %s with id %s is answered and not sent.", message.task_name, message.task_id)
                return
        await kick(message)

    broker.kick = kick_or_answer  # type: ignore[method-assign] # the only place where a message can be kept back


async def _stored(broker: AsyncBroker, ready: _Answer) -> bool:
    try:
        await broker.result_backend.set_result(ready.task_id, ready.result)
    except Exception:  # a worker may have more luck
        logger.warning("The answer to task %s cannot be stored; it is sent.", ready.task_id, exc_info=True)
        return False
    return True
