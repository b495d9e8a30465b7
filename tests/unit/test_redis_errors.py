"""What a server's errors mean, in the words of every supported version."""

from __future__ import annotations

import pytest
from redis.exceptions import ResponseError

from slotline import StoreError, StoreUnavailableError
from slotline.stores._redis_errors import elsewhere, translated

IN_A_SCRIPT = "Error running script (call to f_f01b20dede1137ac): @user_script:80: @user_script: 80: -"
"""What Redis < 7 says before an error of a command within a script."""

REFUSED = {
    "OOM command not allowed when used memory > 'maxmemory'.": False,
    "READONLY You can't write against a read only replica.": True,
    "NOREPLICAS Not enough good replicas to write.": False,
    "MISCONF Redis is configured to save RDB snapshots": False,
    "The user executing the script can't publish to the channel mentioned in the command": False,
}


@pytest.mark.parametrize("said", REFUSED)
@pytest.mark.parametrize("before", ["", IN_A_SCRIPT, f"ERR {IN_A_SCRIPT}"], ids=["plain", "in a script", "with code"])
def test_a_server_that_cannot_write_is_unavailable_also_where_a_script_found_out(said, before):
    error = translated("redis://host", ResponseError(before + said))
    assert isinstance(error, StoreUnavailableError)
    assert elsewhere(ResponseError(before + said)) is REFUSED[said]


@pytest.mark.parametrize(
    "said", ["WRONGTYPE Operation against a key", f"{IN_A_SCRIPT}WRONGTYPE Operation", "ERR syntax"]
)
def test_what_a_server_has_understood_and_refused_is_an_error_of_the_command(said):
    error = translated("redis://host", ResponseError(said))
    assert type(error) is StoreError
    assert "WRONGTYPE" in str(error) or "syntax" in str(error)
