"""How large a message may be that is parked."""

from __future__ import annotations

from slotline import settings
from slotline.errors import MessageTooLargeError


def check_size(size: int, key: str) -> None:
    """Refuse a message of ``size`` bytes for pool ``key`` that is larger than ``max_parked_bytes`` of the settings.

    Raises:
        MessageTooLargeError: It is.
    """
    most = settings.current().max_parked_bytes
    if most is not None and size > most:
        raise MessageTooLargeError(size, most, key)
