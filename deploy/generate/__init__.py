"""What `deploy/kubernetes` has of Prometheus's rules and Grafana's dashboards."""
