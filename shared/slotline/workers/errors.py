"""The errors of worker processes that billiard has no class for."""

from __future__ import annotations

import pickle

from slotline.errors import SlotlineError, WorkExitedError


class UnpicklableError(SlotlineError, pickle.PicklingError):
    """A task, its argument, its result or its exception could not travel between the processes.

    Args:
        what: What could not travel ("task or argument", "result", "exception").
        type_name: The qualified name of its type.
        reason: What pickle said.
    """

    def __init__(self, what: str, type_name: str, reason: str) -> None:
        super().__init__(what, type_name, reason)
        self.what, self.type_name, self.reason = what, type_name, reason

    def __str__(self) -> str:
        return f"The {self.what} of type {self.type_name} cannot be sent to another process: {self.reason}"


class TaskExitError(WorkExitedError):
    """A task raised something that ends a program, which stays the task's own affair.

    Args:
        raised: The ``repr`` of what was raised (``SystemExit(3)``, ``KeyboardInterrupt()``).
    """

    def __init__(self, raised: str) -> None:
        how, _, detail = raised.partition("(")
        super().__init__(how, detail.removesuffix(")"))
        self.args, self.raised = (raised,), raised

    def __str__(self) -> str:
        return f"The task raised {self.raised}, which would have ended its process; only the task was ended."


class ExecutorClosedError(SlotlineError, RuntimeError):
    """The executor takes no more work: it was closed, terminated or shut down."""


class RemoteTraceback(Exception):  # noqa: N818 - it is shown as the cause of an error and never raised by itself
    """The traceback of an error as it looked in the worker process; the error carries it as ``__cause__``."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'
