"""Both faces of every cache of the package are the same."""

from __future__ import annotations

import inspect
import sys

from slotline.caches import CacheAdapter, InMemoryCacheAdapter, RedisCacheAdapter, TieredCacheAdapter


def test_both_faces_have_the_same_methods_parameters_and_defaults():
    for adapter in (InMemoryCacheAdapter, RedisCacheAdapter, TieredCacheAdapter):
        face = inspect.get_annotations(adapter.sync.func)["return"]
        module = sys.modules[adapter.__module__]
        blocking = getattr(module, face)
        names = {name for name in dir(adapter) if not name.startswith("_")} - {"sync"}
        names = {name for name in names if inspect.isfunction(getattr(adapter, name))}
        shared = names & {name for name in dir(blocking) if not name.startswith("_")}
        required = {
            "get_or_create",
            "get",
            "lookup",
            "set",
            "invalidate",
            "invalidate_tag",
            "clear",
            "entry_options",
            "get_stats",
            "close",
        }
        assert required <= shared
        for name in shared:
            expected = inspect.signature(getattr(adapter, name))
            assert inspect.signature(getattr(blocking, name)).parameters == expected.parameters, name


def test_the_adapters_are_cache_adapters():
    assert issubclass(InMemoryCacheAdapter, CacheAdapter)
    assert issubclass(RedisCacheAdapter, CacheAdapter)
    assert issubclass(TieredCacheAdapter, CacheAdapter)
