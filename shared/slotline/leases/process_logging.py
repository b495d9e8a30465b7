"""Log records of worker processes, forwarded to the process that owns them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from slotline._checks import flag, refuse


@dataclass(frozen=True, slots=True)
class ProcessLoggingConfig:
    """How log records of worker processes reach the owner's loggers.

    Args:
        enabled: Whether records are forwarded at all (default ``False``).
        level: Level of the root logger in the workers (default ``INFO``).
        target_logger: The owner's logger that gets the records; by default, each goes to the logger of its own name.
        clear_child_handlers: Whether handlers that a worker already has on its root logger are removed first
            (default ``True``), so that a forked worker does not write each record twice.

    Raises:
        InvalidOptionError: A value is not one of those.
    """

    enabled: bool = False
    level: int | str = logging.INFO
    target_logger: logging.Logger | None = None
    clear_child_handlers: bool = True

    def __post_init__(self) -> None:
        flag("enabled", self.enabled)
        check_level("level", self.level)
        check_logger("target_logger", self.target_logger)
        flag("clear_child_handlers", self.clear_child_handlers)


def check_level(option: str, value: Any) -> int:
    """Return a logging level as its number."""
    known = logging.getLevelNamesMapping()
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and value in known:
        return known[value]
    raise refuse(option, value, f"a logging level: a whole number, or one of {', '.join(known)}")


def check_logger(option: str, value: Any) -> logging.Logger | None:
    """Return ``value`` if it is a logger or ``None``."""
    if value is None or isinstance(value, logging.Logger):
        return value
    raise refuse(option, value, "a logging.Logger or None")


def process_logging_of(
    config: ProcessLoggingConfig | None,
    *,
    forward_process_logs: bool,
    process_log_level: int | str,
    process_log_target_logger: logging.Logger | None,
    clear_process_log_handlers: bool,
) -> ProcessLoggingConfig:
    """Return the one configuration that a manager's options amount to.

    Raises:
        InvalidOptionError: A value is wrong, or both forms were used together.
    """
    short_form = {
        "forward_process_logs": (flag("forward_process_logs", forward_process_logs), False),
        "process_log_level": (check_level("process_log_level", process_log_level), logging.INFO),
        "process_log_target_logger": (check_logger("process_log_target_logger", process_log_target_logger), None),
        "clear_process_log_handlers": (flag("clear_process_log_handlers", clear_process_log_handlers), True),
    }
    if config is None:
        return ProcessLoggingConfig(
            enabled=forward_process_logs,
            level=process_log_level,
            target_logger=process_log_target_logger,
            clear_child_handlers=clear_process_log_handlers,
        )
    if not isinstance(config, ProcessLoggingConfig):
        raise refuse("process_logging", config, "a ProcessLoggingConfig or None")
    for option, (value, default) in short_form.items():
        if value != default:
            raise refuse(option, value, "left out when process_logging is given: the two say the same thing")
    return config
