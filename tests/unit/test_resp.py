"""How commands are written for the server, with and without hiredis."""

from __future__ import annotations

import pytest
from redis.exceptions import DataError

from slotline.stores import _resp


@pytest.fixture(params=["hiredis", "plain"], autouse=True)
def _packer(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(_resp, "pack_command", None)
    else:
        assert _resp.pack_command is not None, "the redis extra brings hiredis"


def test_words_are_written_with_their_lengths_in_bytes():
    words = ("ECHO", b"\x00\xff", "ü", 17, -1, 1.5, "")
    assert _resp.packed(words) == (
        b"*7\r\n$4\r\nECHO\r\n$2\r\n\x00\xff\r\n$2\r\n\xc3\xbc\r\n$2\r\n17\r\n$2\r\n-1\r\n$3\r\n1.5\r\n$0\r\n\r\n"
    )


@pytest.mark.parametrize("word", [None, True, ["x"], object()])
def test_what_is_no_word_is_refused(word):
    with pytest.raises(DataError):
        _resp.packed(("ECHO", word))


def test_text_without_a_form_is_refused():
    with pytest.raises(UnicodeError):
        _resp.packed(("ECHO", "\ud800"))
