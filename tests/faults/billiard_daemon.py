"""What a daemonic process does with an executor of its own."""

from __future__ import annotations

from pathlib import Path

from slotline.workers import BilliardExecutor
from tests.integration import billiard_tasks as tasks


def main(path):
    with BilliardExecutor(2) as executor:
        squares = executor.map(tasks.square, range(3))
        error = executor.options(timeout=0.2).submit(tasks.sleep, 60).exception(30)
    Path(path).write_text(f"{squares} {type(error).__name__}")
