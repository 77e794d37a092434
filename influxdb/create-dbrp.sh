#!/bin/bash
# Run once by the image, after it has set up InfluxDB 2.x: lets InfluxQL, which asks for a database and a retention policy,
# find the bucket. The bucket's virtual mapping says the same, but goes when somebody renames the bucket.
# https://docs.influxdata.com/influxdb/v2/query-data/influxql/dbrp/
set -euo pipefail

influx v1 dbrp create \
  --org "$DOCKER_INFLUXDB_INIT_ORG" \
  --bucket-id "$DOCKER_INFLUXDB_INIT_BUCKET_ID" \
  --db "$DOCKER_INFLUXDB_INIT_BUCKET" \
  --rp autogen \
  --default
