"""The operator's commands: ``slotline``, ``celery -A app slotline`` and ``taskiq slotline app:broker``."""

from slotline.cli.main import main

__all__ = ["main"]
