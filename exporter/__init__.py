"""Self-hosted statistics endpoint for Capgo live updates: Prometheus counters and InfluxDB points."""

__version__ = "0.1.0"
