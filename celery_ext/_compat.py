"""The private parts of Celery and kombu that the gate stands on, checked before anything relies on them."""

from __future__ import annotations

from typing import Any

import celery
from celery import bootsteps
from celery.utils.log import get_logger
from celery.worker import state
from celery.worker.request import Request
from kombu.messaging import Consumer

from slotline.errors import UnsupportedFrameworkError

logger = get_logger(__name__)

_SUPPORTED = ((5, 4), (5, 8))
_TRIED_POOLS = frozenset(f"celery.concurrency.{name}" for name in ("prefork", "thread", "solo", "gevent"))


def check_version() -> None:
    """Refuse a Celery that Slotline was not tried on.

    Raises:
        UnsupportedFrameworkError: It is older than 5.4, or 5.8 and newer.
    """
    low, high = _SUPPORTED
    if not low <= tuple(celery.VERSION[:2]) < high:
        raise _unsupported("a version from 5.4 to 5.7")


def check_worker(worker: Any, consumer: Any) -> None:
    """Refuse a worker that lacks something that the gate uses.

    Raises:
        UnsupportedFrameworkError: The first part that is missing is named.
    """
    check_version()
    _need(worker, "worker", "_process_task")
    _need(consumer, "consumer", "on_task_request", "timer", "pool", "call_soon", "hub", "task_buckets")
    _need(consumer, "consumer", "add_task_queue", "cancel_task_queue")
    _need(Consumer(None), "kombu's consumer", "_active_tags")  # type: ignore[no-untyped-call] # kombu ships no types
    _need(state, "celery.worker.state", "reserved_requests", "requests", "task_reserved", "task_ready", "revoked")
    _need(
        Request,
        "Request",
        "on_success",
        "on_failure",
        "on_timeout",
        "on_accepted",
        "revoked",
        "acknowledge",
        "reject",
        "_already_cancelled",
        "_already_revoked",
        "_announce_revoked",
        "_apply_result",
    )
    _need(bootsteps, "celery.bootsteps", "StartStopStep")
    if has_semaphore(worker, consumer):
        _need(worker, "worker", "_quick_acquire", "_quick_release", "semaphore")
        _need(worker.semaphore, "kombu's semaphore", "value", "_waiting")


def warn_of_pool(pool: Any) -> None:
    """Say so where a worker's pool is of a kind that limits were not tried on: eventlet's, or the user's own."""
    kind = type(pool)
    if kind.__module__ not in _TRIED_POOLS:
        logger.warning(
            "Slotline was not tried with the worker pool %s.%s: limits are known to hold in prefork, threads, solo and "
            "gevent, and tasks that lose their slots may run on in others.",
            *(kind.__module__, kind.__qualname__),
        )


def check_redis_transport() -> None:
    """Refuse a kombu whose Redis transport lacks something that keeping its messages fresh uses.

    Raises:
        UnsupportedFrameworkError: The first part that is missing is named.
    """
    from kombu.transport import redis, virtual  # noqa: PLC0415 - redis is an extra

    parts = ("unacked_key", "unacked_index_key", "visibility_timeout", "conn_or_acquire", "qos", "global_keyprefix")
    _need(redis.Channel, "kombu's Redis channel", *parts, "_do_restore_message")
    _need(virtual.QoS, "kombu's QoS", "_delivered")
    _need(redis.QoS, "kombu's QoS on Redis", "restore_visible", "restore_by_tag")


def has_semaphore(worker: Any, consumer: Any) -> bool:
    """Return whether the worker waits for a free pool process before it hands over a request."""
    return getattr(consumer.on_task_request, "__name__", "") == "_process_task_sem" and worker.semaphore is not None


def _need(thing: Any, name: str, *parts: str) -> None:
    for part in parts:
        if not hasattr(thing, part):
            raise _unsupported(f"{name}.{part}")


def _unsupported(missing: str) -> UnsupportedFrameworkError:
    return UnsupportedFrameworkError(f"Celery {celery.__version__}", missing)
