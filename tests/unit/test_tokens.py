"""Tokens, by which operators name slots on the command line."""

from __future__ import annotations

import pytest

from slotline.pools import _tokens


def test_no_token_looks_like_an_option_of_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    _tokens._process.cache_clear()
    monkeypatch.setattr("os.urandom", lambda size: b"\xf8" * size)
    token = _tokens.new_token()
    _tokens._process.cache_clear()
    assert not token.startswith("-")
