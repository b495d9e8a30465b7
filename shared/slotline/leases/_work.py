"""Putting work into a lease."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from slotline._checks import seconds as checked_seconds
from slotline.leases._jobs import LeaseFuture, LocalJob, RemoteJob, Sink
from slotline.leases._process_threads import in_own_process

if TYPE_CHECKING:
    from slotline.leases._grants import Grant


def job_for(
    grant: Grant,
    sink: Sink,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    context: contextvars.Context | None = None,
) -> LocalJob | RemoteJob:
    """Return a call of ``fn`` as the lease's backend runs it; in this process, in a copy of the caller's context."""
    if not callable(fn):
        raise TypeError(f"A lease runs something that can be called, not {fn!r}.")
    backend = grant.core.backend
    if backend.local:
        run = (context or contextvars.copy_context()).run if backend.in_process else in_own_process
        return LocalJob(grant, sink, fn, args, kwargs, run)
    if backend.in_process:
        fn = partial((context or contextvars.copy_context()).run, fn)
    return RemoteJob(grant, sink, fn, args, kwargs)


def submit(grant: Grant, job: LocalJob | RemoteJob) -> None:
    """Put one job into a lease; raises LeaseExpiredError."""
    grant.core.admit(grant, job)
    try:
        grant.place.start(grant, job)
    except BaseException:
        grant.core.job_done(grant, job)
        raise


def submit_many(grant: Grant, jobs: Sequence[LocalJob | RemoteJob]) -> None:
    """Put several jobs into a lease at once; raises LeaseExpiredError."""
    grant.core.admit_many(grant, jobs)
    try:
        grant.place.start_many(grant, jobs)
    except BaseException:
        for job in jobs:
            grant.core.job_done(grant, job)
        raise


def submit_future(
    grant: Grant,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    limits: dict[str, float | None] | None = None,
) -> LeaseFuture:
    """Put a call into a lease and return its future; raises LeaseExpiredError."""
    future = LeaseFuture()
    future.job = job = job_for(grant, future, fn, args, kwargs)
    if limits is not None and isinstance(job, RemoteJob):
        job.limits = limits
    submit(grant, job)
    return future


def renew(grant: Grant, seconds: float | None) -> float:
    """Let a lease expire ``seconds`` from now and return the moment; raises LeaseExpiredError."""
    grant.core.renew(grant, grant.lease_seconds if seconds is None else checked_seconds("seconds", seconds))
    return grant.soft_expires_at
