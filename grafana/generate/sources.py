"""The data sources, as the dashboards' variables name them."""

from typing import Final

from grafana_foundation_sdk.models.dashboard import DataSourceRef

PROMETHEUS: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
INFLUXDB: Final = DataSourceRef(type_val="influxdb", uid="${influxdb_datasource}")
