FROM python:3.13.7-slim-bookworm AS build

WORKDIR /src
RUN python -m venv /opt/venv
COPY pyproject.toml README.md LICENSE ./
COPY exporter ./exporter
RUN /opt/venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check .


FROM python:3.13.7-slim-bookworm

RUN groupadd --gid 10001 exporter \
    && useradd --uid 10001 --gid exporter --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin exporter \
    && install --directory --owner=10001 --group=10001 --mode=0700 /data
COPY --from=build /opt/venv /opt/venv

ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    EXPORTER_DATA_DIR=/data

# Numeric, so that Kubernetes can see that it is not root.
USER 10001:10001
VOLUME ["/data"]
EXPOSE 9746

# It reads the exporter's own environment: which listener, TLS, a Unix socket.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-m", "exporter.health"]

ENTRYPOINT ["capgo-exporter"]
CMD ["serve"]
