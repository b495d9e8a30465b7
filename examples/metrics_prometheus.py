"""Metrics: what Prometheus sees of limits and caches.

Run it with ``python examples/metrics_prometheus.py``. It needs no server. In a worker the same figures are at the port
of ``prometheus_client.start_http_server``, or of Taskiq's ``PrometheusMiddleware``.

Expected output:

    slotline_pool_decisions_total{outcome="admitted",pool="crm:{tenant}"} 3.0
    slotline_pool_decisions_total{outcome="refused",pool="crm:{tenant}"} 1.0
    slotline_pool_hold_seconds_count{pool="crm:{tenant}"} 1.0
    slotline_cache_requests_total{result="miss"} 2.0
    slotline_cache_requests_total{result="hit"} 1.0
    slotline_cache_compute_seconds_count 2.0
    slotline_pool_slots{pool="crm:{tenant}",state="used"} 2.0
    slotline_pool_slots{pool="crm:{tenant}",state="waiting"} 0.0
    slotline_pool_limit{pool="crm:{tenant}"} 4.0
"""

from prometheus_client import CollectorRegistry, generate_latest

import slotline
from slotline.caches import cached
from slotline.metrics import PrometheusMetrics

registry = CollectorRegistry()
slotline.configure(metrics=PrometheusMetrics(registry))


@slotline.pooled("crm:{tenant}", 2)  # two at a time for each tenant, and one name for all of them
def sync_contacts(tenant, then):
    weather(tenant)
    then()


@cached(60)
def weather(city):
    return f"sunny in {city}"


def show():
    for line in generate_latest(registry).decode().splitlines():
        if not line.startswith("#") and not any(part in line for part in ("_bucket", "_sum", "_created")):
            print(line)


sync_contacts("wayne", lambda: None)
sync_contacts("acme", lambda: sync_contacts("acme", lambda: (sync_contacts("acme", show), show())))
