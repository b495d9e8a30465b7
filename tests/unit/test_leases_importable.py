"""Worker processes can import what their owner has imported from the working directory."""

from __future__ import annotations

import sys
import types

import pytest

from slotline.leases._importable import keep_importable


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in {"", str(tmp_path)}])
    return tmp_path


def pretend_imported(monkeypatch, name, file):
    module = types.ModuleType(name)
    module.__file__ = str(file)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("file", ["shop_of_tests.py", "shop_of_tests/__init__.py"])
def test_the_directory_that_a_module_came_from_is_searched_last(here, monkeypatch, file):
    before = list(sys.path)
    pretend_imported(monkeypatch, "shop_of_tests", here / file)
    keep_importable()
    keep_importable()
    assert sys.path == [*before, str(here)]


def test_a_directory_that_nothing_came_from_is_not_searched(here, monkeypatch):
    pretend_imported(monkeypatch, "shop_of_tests", here / "deeper" / "shop_of_tests.py")
    keep_importable()
    assert str(here) not in sys.path


def test_a_removed_working_directory_is_no_error(here):
    here.rmdir()
    keep_importable()
    assert str(here) not in sys.path
