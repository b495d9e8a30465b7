"""The built wheel in an environment that holds nothing else than what it asks for."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.harness.workers import ROOT


def build(kind: str, directory: Path, *, root: Path = ROOT) -> Path:
    """Build the distribution's ``wheel`` or ``sdist`` from a source tree and return its path."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(directory)]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    (built,) = directory.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built


class CleanEnvironment:
    """A virtual environment with the wheel and the dependencies of the named extras, and no others.

    The dependencies are links to what the running interpreter has installed, so that nothing is downloaded.

    Args:
        directory: Where to make it.
        wheel: The wheel to install.
        extras: The extras to install it with.
        also: Further distributions, e.g. a broker that no extra brings.
    """

    def __init__(self, directory: Path, wheel: Path, extras: Iterable[str] = (), also: Iterable[str] = ()) -> None:
        self.directory = directory
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(directory)], check=True)
        self.python = directory / "bin" / "python"
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "--disable-pip-version-check"]
        command = [*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout + run.stderr
        paths = sysconfig.get_paths(vars={"base": str(directory), "platbase": str(directory)})
        self.site = Path(paths["purelib"])
        installed = Distribution.at(next(self.site.glob("slotline-*.dist-info")))
        self.names: set[str] = set()
        for needed in [*_needed(installed, frozenset(extras)), *(Requirement(name) for name in also)]:
            self._link(needed)

    def run(self, *arguments: str, cwd: Path, timeout: float = 60) -> str:
        """Run this environment's Python and return what it prints."""
        run = subprocess.run(
            [str(self.python), *arguments],
            cwd=cwd, env=self.variables(), capture_output=True, text=True, check=False, timeout=timeout,
        )  # fmt: skip
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    def variables(self) -> dict[str, str]:
        """Return this process's environment variables without those that would let other packages in."""
        hidden = ("PYTHON", "VIRTUAL_ENV", "SLOTLINE_", "COV_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        return {**kept, "PATH": f"{self.directory / 'bin'}{os.pathsep}{kept.get('PATH', '')}"}

    def _link(self, requirement: Requirement) -> None:
        name = canonicalize_name(requirement.name)
        found = distribution(name)
        assert requirement.specifier.contains(found.version, prereleases=True), f"{requirement}: {found.version}"
        if name not in self.names:
            self.names.add(name)
            base = Path(str(found.locate_file("")))
            for top in {file.parts[0] for file in found.files or () if file.parts[0] not in {"..", "__pycache__"}}:
                target = self.site / top
                if not target.exists():
                    target.symlink_to(base / top)
        for needed in _needed(found, frozenset(requirement.extras)):
            if canonicalize_name(needed.name) not in self.names or needed.extras:
                self._link(needed)


def _needed(installed: Distribution, extras: frozenset[str]) -> Iterator[Requirement]:
    for line in installed.requires or ():
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""}):
            yield requirement
