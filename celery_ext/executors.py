"""Bodies and leases on executors that a process starts when it first wants them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from importlib import import_module
from threading import local
from typing import TYPE_CHECKING, Any, NamedTuple

from billiard.process import current_process
from celery import Task as BaseTask
from celery import current_app
from celery._state import _task_stack
from celery.app.task import Context

from celery_ext.config import runtime
from celery_ext.slot import slot_of
from slotline.leases import ExecutorBackend, Limits, limits_for, run_in_lease_sync

if TYPE_CHECKING:
    from celery_ext.task import Task
    from slotline.leases import ExecutorLease, LeasedExecutorManager

BODY = "_slotline_body"
"""Where a task whose code Celery has wrapped with its autoretry keeps that code."""
_wanted = local()
"""``name``: the manager in whose lease the body must run that this thread is about to call."""
_LEASE_SLACK = 60.0
"""Seconds by which a lease outlives the time limit of its task, so that the limit is what ends it."""


def lease(task: Task, name: str, **options: Any) -> ExecutorLease:
    """Lease an executor of the manager ``name`` for a running task."""
    options.setdefault("owner", _owner(task, task.request))
    return runtime(task.app).executors.get(name).sync.acquire(**options)


def leased(task: Task, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a task so that its own code runs in a lease of the manager ``name``.

    What Celery wraps around that code, its autoretry, stays in the calling process.
    """
    if BODY not in task.__dict__:
        return _run_in_lease(task, name, task.run, args, kwargs)
    _wanted.name = name
    try:
        return task.run(*args, **kwargs)
    finally:
        _wanted.name = None


def inside_autoretry(task: Task, body: Callable[..., Any]) -> Callable[..., Any]:
    """Return what Celery's autoretry calls as the task's body: in a lease if the running call wants one."""
    name = getattr(_wanted, "name", None)
    if name is None:
        return body
    _wanted.name = None
    return lambda *args, **kwargs: _run_in_lease(task, name, body, args, kwargs)


def _run_in_lease(
    task: Task, name: str, body: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    manager = runtime(task.app).executors.get(name)
    request = task.request
    work: Callable[..., Any]
    if manager.backend is ExecutorBackend.THREAD:
        work = partial(_with_request, task, request, body)
    else:
        plain = {field: value for field, value in vars(request).items() if not field.startswith("_")}
        work = _InProcess(TaskName.of(task), plain)
    vars(work)["__qualname__"] = task.name  # what errors call it
    limits, life = _limits(task, request, manager)
    slot = slot_of(request)
    run = _Run()
    if slot is not None and manager.killable:
        _runs[slot.token] = run
    try:
        return run_in_lease_sync(
            manager,
            work,
            args,
            kwargs,
            owner=_owner(task, request),
            limits=limits,
            lease_seconds=life,
            on_lease=run.begin,
        )
    except Exception:
        if run.error is not None:
            raise run.error from None
        raise
    finally:
        if slot is not None:
            _runs.pop(slot.token, None)


class _Run:
    """A body in a lease, which the worker can end when its slot is lost."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self._lock = threading.Lock()
        self._lease: ExecutorLease | None = None

    def begin(self, lease: ExecutorLease) -> None:
        with self._lock:
            self._lease = lease
            late = self.error is not None
        if late:
            lease.sync.revoke(_LOST)

    def end(self, error: Exception) -> None:
        with self._lock:
            self.error, lease = error, self._lease
        if lease is not None:
            lease.sync.revoke(_LOST)


_runs: dict[str, _Run] = {}
_LOST = "was revoked because its task's slot is lost"


def end(token: str, error: Exception) -> bool:
    """Kill the body that runs in a lease of this process and holds the slot ``token``, which ends with ``error``.

    Returns:
        Whether there is one, and it can be killed.
    """
    run = _runs.get(token)
    if run is not None:
        run.end(error)
    return run is not None


def _limits(task: Task, request: Context, manager: LeasedExecutorManager) -> tuple[Limits | None, float | None]:
    """Return the limits that the lease must enforce, and its life.

    Celery enforces time limits by killing a prefork child, and what the child leased dies with it. Other pools of
    Celery know no time limits: there a lease that can kill its work does it.
    """
    of_the_call = request.timelimit or (None, None)  # the name that every supported Celery gives to the pair
    hard, soft = (
        own or default for own, default in zip(of_the_call, (task.time_limit, task.soft_time_limit), strict=True)
    )
    if hard is None or current_process().daemon or not manager.killable:
        return None, None if hard is None else hard + _LEASE_SLACK
    return limits_for(manager, time_limit=hard, soft_time_limit=soft if manager.takes_limits else None), None


def _with_request(task: Task, request: Context, body: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    _task_stack.push(task)
    task.request_stack.push(request)
    try:
        return body(*args, **kwargs)
    finally:
        task.request_stack.pop()
        _task_stack.pop()


class _InProcess:
    """A task's body on its way to another process."""

    def __init__(self, name: TaskName, request: dict[str, Any]) -> None:
        self.name, self.request = name, request

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        task = self.name.find()
        body = task.__dict__.get(BODY) or task.run
        return _with_request(task, Context(self.request), body, *args, **kwargs)

    def slotline_prepare(self) -> None:
        """Look for the task before the call's time begins."""
        self.name.find()


class TaskName(NamedTuple):
    """How a task travels to a process that may not have imported its app yet.

    Attributes:
        name: The task's name.
        module: The module that defines it.
        attribute: What it is called there.
    """

    name: str
    module: str
    attribute: str

    @classmethod
    def of(cls, task: Task) -> TaskName:
        """Return the way to ``task``."""
        return cls(task.name, type(task).__module__, getattr(task, "__qualname__", type(task).__qualname__))

    def find(self) -> Any:
        """Return the task in this process.

        Raises:
            NotRegistered: Importing its module does not bring it about.
        """
        # By its place first: in a process that was spawned, the tasks of the main module have other names.
        found: Any = import_module(self.module)
        for part in self.attribute.split("."):
            found = getattr(found, part, None)
        return found if isinstance(found, BaseTask) else current_app.tasks[self.name]


def _owner(task: Task, request: Context) -> str:
    return f"{task.name}[{request.id}]" if request.id else str(task.name)
