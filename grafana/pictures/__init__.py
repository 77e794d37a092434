"""Pictures of the dashboards for the documents: plots of the panels' own queries, until Grafana can be photographed."""
