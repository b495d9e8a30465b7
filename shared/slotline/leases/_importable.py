"""What this process has imported, its worker processes can import too."""

from __future__ import annotations

import os
import sys


def keep_importable() -> None:
    """Put the working directory back on ``sys.path`` if modules of this process came from there.

    The commands of both queues have it there only while they import the application. A new worker process gets this
    process's path, and would not find the modules of the functions that it is to run.
    """
    try:
        here = os.getcwd()  # noqa: PTH109 - sys.path holds text
    except FileNotFoundError:  # it was removed
        return
    if here in sys.path or "" in sys.path:
        return
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if "." not in name and isinstance(file, str) and _root_of(file) == here:
            sys.path.append(here)
            return


def _root_of(file: str) -> str:
    directory, name = os.path.split(os.path.abspath(file))  # noqa: PTH100 - see above
    return os.path.dirname(directory) if name.startswith("__init__.") else directory  # noqa: PTH120 - see above
