"""Rules, alerts and the dashboard, against the real Prometheus and real scrapes."""
