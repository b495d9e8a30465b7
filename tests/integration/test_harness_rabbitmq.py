"""A test on RabbitMQ gets names of its own, and they are deleted after it."""

from __future__ import annotations

import os

import amqp
import pytest

from tests.harness import fixtures_rabbitmq as module
from tests.harness.workers import ROOT


@pytest.mark.rabbitmq
@pytest.mark.parametrize("round_", [1, 2])
def test_names_are_new_in_every_test_and_deleted_after_it(round_, amqp_url, amqp_name, request):
    connection = module._connect(amqp_url)
    with connection, connection.channel() as channel:
        name = amqp_name("tasks")
        channel.queue_declare(name, auto_delete=False)
        before = request.config.stash.get(_seen, "")
        if round_ == 2 and before:
            with pytest.raises(amqp.NotFound):
                channel.queue_declare(before, passive=True)
    assert name != before
    request.config.stash[_seen] = name


_seen = pytest.StashKey[str]()


def test_broker_that_does_not_answer_is_a_skip_with_the_reason(pytester, monkeypatch):
    pytester.makeconftest((ROOT / "tests" / "conftest.py").read_text())
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider\n")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'shared'}")
    monkeypatch.setenv("AMQP_URL", "amqp://guest:secret@127.0.0.1:9//")
    pytester.makepyfile("def test_it(amqp_url): assert False")
    result = pytester.runpytest_subprocess("-rs", timeout=60)
    assert result.parseoutcomes() == {"skipped": 1}
    result.stdout.fnmatch_lines(["*NO RABBITMQ at AMQP_URL (127.0.0.1): ConnectionRefusedError*NOT tested*"])
    assert "secret" not in result.stdout.str()
