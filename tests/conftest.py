"""The fixtures and the checks that every test gets; they live in ``tests/harness``."""

pytest_plugins = (
    "pytester",
    "tests.harness.checks",
    "tests.harness.fixtures_redis",
    "tests.harness.fixtures_rabbitmq",
    "tests.harness.fixtures_workers",
    "tests.harness.fixtures_faces",
    "tests.harness.fixtures_cli",
    "tests.harness.fixtures_metrics",
    "tests.harness.fixtures_relays",
    "tests.harness.fixtures_rooms",
)
