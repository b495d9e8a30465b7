"""Fixtures that give a test a RabbitMQ that runs already; tests never start one."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import amqp
import pytest
from kombu.utils.url import parse_url

DEFAULT_URL = "amqp://guest:guest@127.0.0.1:5672//"


def _connect(url: str) -> amqp.Connection:
    parts = parse_url(url)
    connection = amqp.Connection(
        host=f"{parts['hostname']}:{parts['port'] or 5672}",
        userid=parts["userid"] or "guest",
        password=parts["password"] or "guest",
        virtual_host=parts["virtual_host"] or "/",
        connect_timeout=1,
        read_timeout=1,
        write_timeout=1,
    )
    connection.connect()
    return connection


def configured_url() -> str:
    """Return the URL of the RabbitMQ that tests use where one answers."""
    return os.environ.get("AMQP_URL", DEFAULT_URL)


@cache
def silent(url: str) -> str | None:
    """Return why the broker cannot be used, or ``None`` if it answers within a second."""
    try:
        _connect(url).close()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


@pytest.fixture(scope="session")
def amqp_url() -> str:
    """The URL of a RabbitMQ (AMQP_URL); the test is skipped, with the reason, if none answers within a second."""
    url = configured_url()
    reason = silent(url)
    if reason is not None:
        pytest.skip(f"NO RABBITMQ at AMQP_URL ({parse_url(url)['hostname']}): {reason}; this is NOT tested")
    return url


@pytest.fixture
def amqp_name(amqp_url: str) -> Iterator[Callable[..., str]]:
    """See :func:`amqp_names`."""
    with amqp_names(amqp_url) as name:
        yield name


@contextmanager
def amqp_names(amqp_url: str) -> Iterator[Callable[..., str]]:
    """A function that returns a new name for a queue and its exchange; both are deleted at the end.

    ``amqp_name("tasks")`` differs in every test and run; names that are derived from it are given as
    ``amqp_name("tasks", suffixes=("", ".delay", ".dead_letter"))``, which deletes them too.
    """
    names: list[str] = []

    def name(purpose: str, suffixes: tuple[str, ...] = ("", ".delay", ".dead_letter")) -> str:
        unique = f"slotline-test-{uuid.uuid4().hex[:12]}-{purpose}"
        names.extend(unique + suffix for suffix in suffixes)
        return unique

    yield name
    connection = _connect(amqp_url)
    try:
        for each in names:
            with connection.channel() as channel:
                channel.queue_delete(each)
                channel.exchange_delete(each)
    finally:
        connection.close()
