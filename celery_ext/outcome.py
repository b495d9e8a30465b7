"""How a request ends that never reaches the pool: refused with an error, or dropped."""

from __future__ import annotations

from typing import Any

from billiard.einfo import ExceptionInfo
from celery import states
from celery.utils.log import get_logger
from celery.worker import state

from slotline.errors import PoolFullError, PoolTimeoutError, RunCancelledError
from slotline.metrics import _telling

logger = get_logger(__name__)


def fail(request: Any, error: BaseException) -> None:
    """Make ``error`` the task's result, with everything that follows a task's failure, and acknowledge its message.

    The result, the errbacks, the chord, the ``task_failure`` signal and the ``task-failed`` event are those of any
    task that fails in the worker's main process; the task's own ``on_failure`` and ``after_return`` run there, too.
    """
    info = info_of(error)
    logger.info("%s does not run: %s", request, error)  # Celery's own line does not name the task
    try:
        request.on_failure(info)
    finally:
        request.acknowledge()  # where messages are acknowledged early, on_failure leaves it to the pool
    arguments = (request.id, request.args, request.kwargs, info)
    try:
        request.task.on_failure(error, *arguments)
        request.task.after_return(states.FAILURE, error, *arguments)
    except Exception:
        logger.exception("the failure handler of task %s[%s] failed", request.name, request.id)
    error.__traceback__ = None  # it would keep this frame, and the request with it


class _Decision(ExceptionInfo):  # type: ignore[misc] # billiard ships no types
    """Something that was decided here, and not raised by anybody's code: Celery logs it without a traceback."""

    @property
    def exc_info(self) -> None:
        return None


def info_of(error: BaseException) -> ExceptionInfo:
    """Return what a pool would report of an error that was raised in one of its processes."""
    try:
        raise error.with_traceback(None) from None
    except type(error):
        return _Decision()


def turn_away(request: Any, on_full: str | None, error: PoolFullError) -> None:
    """End a request that finds its pool full as ``on_full`` says: dropped, cancelled, or failed with ``error``.

    One that is dropped out of a chord's header is cancelled, so that the chord fails instead of waiting for it.
    """
    drops = on_full == "drop" and not isinstance(error, PoolTimeoutError)
    if drops and request.chord is None:
        logger.info("%s is dropped: %s", request, error)
        _telling.turned_away(error, "dropped")
        _drop(request)
    elif drops or on_full == "cancel_newest":  # a chord would wait for the result of what is dropped for ever
        logger.info("%s is cancelled: %s", request, error)
        _telling.turned_away(error, "cancelled")
        cancel(request, str(RunCancelledError(error.key, error.max_size, error.holders)))
    else:
        fail(request, error)


def cancel(request: Any, reason: str) -> None:
    """End a request as if it had been revoked: its state is ``REVOKED``, and its result says why."""
    request._announce_revoked(reason, False, None, False)  # noqa: FBT003, SLF001 - checked by check_worker


def _drop(request: Any) -> None:
    state.task_ready(request)
    request.acknowledge()
    request.send_event("task-rejected", requeue=False)


def give_back(request: Any) -> None:
    """Put a request's message back into the room: it runs later, here or elsewhere."""
    state.task_ready(request)
    request.message.requeue()
