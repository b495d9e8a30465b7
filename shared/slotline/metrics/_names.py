"""What pools are called in labels: by a text from the code or the configuration, and never by a key made of data.

A key such as ``crm:acme`` names a tenant: it may be confidential, and there may be a million. So a pool is called by
the key or the template, of those that this process knows, that its key fits.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from slotline.keys import KeyTemplate

OTHER: Final = "other"
"""What pools are called that nobody has named."""
_MOST: Final = 1000
"""More names than that come from data, whatever declares them."""
_INTERNAL: Final = ("cache-line:", "cache-refresh:")

_templates: dict[str, KeyTemplate] = {}


def name_pools(templates: Iterable[KeyTemplate]) -> None:
    """Call pools whose keys fit one of these by it, beside those that are known; a thousand at the most."""
    for template in templates:
        if template.template not in _templates and len(_templates) < _MOST:
            _templates[template.template] = template
            label_of.cache_clear()


def name_keys(keys: Iterable[str], option: str = "pool") -> None:
    """Do so by keys and templates that are texts.

    Raises:
        InvalidOptionError: One is no template; the error calls it ``option``.
    """
    from slotline.keys import KeyTemplate  # noqa: PLC0415 - only those who name pools need it

    name_pools([KeyTemplate(key, option=option) for key in keys])


@lru_cache(maxsize=4096)
def label_of(key: str) -> str | None:
    """Return what the pool ``key`` is called; ``None``: it is the package's own affair, and not counted."""
    if key.startswith(_INTERNAL):
        return None
    fitting = [known for known in list(_templates.values()) if known.fits(key)]
    # Of several, the one that says most.
    return max(fitting, key=lambda known: (known.literal, known.template)).template if fitting else OTHER
