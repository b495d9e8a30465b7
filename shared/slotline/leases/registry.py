"""Managers by name, as a queue's configuration declares them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from slotline._checks import refuse
from slotline.errors import InvalidOptionError

if TYPE_CHECKING:
    from slotline.leases.manager import LeasedExecutorManager


class ManagerRegistry:
    """Named managers: checked when they are declared, started in the process that first asks for one.

    A registry that a fork has copied starts its managers anew in the child. A manager that was running before it was
    first asked for belongs to someone else, and is not stopped here.

    Args:
        declarations: For each name a manager, or the keyword arguments of one:
            ``{"cpu": {"backend": "process", "max_pools": 1}}``.

    Raises:
        InvalidOptionError: A declaration is wrong; the error names it.
        UnsupportedBackendError: This interpreter or installation lacks a declared backend.
    """

    def __init__(self, declarations: Mapping[str, LeasedExecutorManager | Mapping[str, Any]]) -> None:
        if not isinstance(declarations, Mapping):
            raise refuse("executors", declarations, "a mapping from names to managers or to their options")
        self._managers = {name: _declared(name, value) for name, value in declarations.items()}
        self._lock = threading.Lock()
        self._started: set[str] = set()

    @property
    def names(self) -> tuple[str, ...]:
        """The declared names."""
        return tuple(self._managers)

    def __contains__(self, name: object) -> bool:
        return name in self._managers

    def __iter__(self) -> Iterator[str]:
        return iter(self._managers)

    def declared(self, name: str) -> LeasedExecutorManager:
        """Return a manager without starting it, to ask what it can do.

        Raises:
            InvalidOptionError: Nothing of this name is declared.
        """
        manager = self._managers.get(name) if isinstance(name, str) else None
        if manager is None:
            known = ", ".join(map(repr, self._managers)) or "none is declared"
            raise refuse("executor", name, f"the name of a declared executor ({known})")
        return manager

    def get(self, name: str) -> LeasedExecutorManager:
        """Return a manager that grants leases; starting it takes no time and blocks nobody.

        Raises:
            InvalidOptionError: Nothing of this name is declared.
        """
        manager = self.declared(name)
        if not manager.running or manager.inherited:
            with self._lock:
                if not manager.running or manager.inherited:
                    manager.sync.start()
                    self._started.add(name)
        return manager

    def stop_all(self, wait: bool = True) -> None:  # noqa: FBT001, FBT002 - the shape both queues call
        """Stop the managers that this registry started in this process.

        Args:
            wait: Whether work that their leases have taken may end first (default ``True``).
        """
        with self._lock:
            started, self._started = self._started, set()
        for name in started:
            self._managers[name].sync.stop(wait=wait)


def _declared(name: str, value: Any) -> LeasedExecutorManager:
    from slotline.leases.manager import LeasedExecutorManager  # noqa: PLC0415 - its import is dear, and few declare one

    if not isinstance(name, str) or not name:
        raise refuse("executors", name, "names that are strings and not empty")
    if isinstance(value, LeasedExecutorManager):
        return value
    if not isinstance(value, Mapping):
        raise refuse(f"executors[{name!r}]", value, "a LeasedExecutorManager or a mapping of its options")
    try:
        return LeasedExecutorManager(**value)
    except InvalidOptionError as error:
        raise InvalidOptionError(f"executors[{name!r}].{error.option}", error.value, error.allowed) from None
    except TypeError as error:  # an option is missing, or its name is no string
        raise refuse(f"executors[{name!r}]", dict(value), f"the options of a LeasedExecutorManager ({error})") from None
