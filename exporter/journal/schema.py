"""The tables of the journal and how a connection is set up."""

import sqlite3
from pathlib import Path
from typing import Final

APPLICATION_ID: Final = 0x43415047  # "CAPG": tells this project's files from other SQLite files
SCHEMA_VERSION: Final = 2

TABLES: Final = """
CREATE TABLE state (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    last_transaction INTEGER NOT NULL,
    expired_events INTEGER NOT NULL,
    points INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    event_ids INTEGER NOT NULL,
    dead_letter_points INTEGER NOT NULL,
    dead_letter_bytes INTEGER NOT NULL
);
INSERT INTO state VALUES (1, 0, 0, 0, 0, 0, 0, 0);
CREATE TABLE event_ids (
    number INTEGER PRIMARY KEY,
    now_ms INTEGER NOT NULL,
    count INTEGER NOT NULL,
    ids BLOB NOT NULL
);
CREATE TABLE points (
    number INTEGER PRIMARY KEY,
    now_ms INTEGER NOT NULL,
    count INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    lines BLOB NOT NULL
);
CREATE TABLE dead_letters (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    now_ms INTEGER NOT NULL,
    count INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    reason TEXT NOT NULL,
    error TEXT NOT NULL,
    lines BLOB NOT NULL
);
"""

_SERIES: Final = """
CREATE TABLE series (
    series_id INTEGER PRIMARY KEY,
    family TEXT NOT NULL,
    labels TEXT NOT NULL,
    value INTEGER NOT NULL,
    birth INTEGER NOT NULL,
    last_ms INTEGER NOT NULL
);
"""

_DERIVED: Final = """
CREATE TABLE episodes (number INTEGER PRIMARY KEY, states BLOB NOT NULL);
CREATE TABLE installed (number INTEGER PRIMARY KEY, count INTEGER NOT NULL, pairs BLOB NOT NULL);
CREATE TABLE sketches (
    sketch_id INTEGER PRIMARY KEY,
    app_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    day INTEGER NOT NULL,
    sketch BLOB
);
CREATE TABLE sightings (number INTEGER PRIMARY KEY, devices BLOB NOT NULL);
CREATE TABLE releases (
    app_id TEXT NOT NULL,
    version TEXT NOT NULL,
    first_seen_ms INTEGER NOT NULL,
    devices BLOB NOT NULL,
    PRIMARY KEY (app_id, version)
);
CREATE TABLE marks (
    app_id TEXT NOT NULL,
    version TEXT NOT NULL,
    channel TEXT NOT NULL,
    marked_ms INTEGER NOT NULL,
    rollout_percentage REAL,
    note TEXT NOT NULL,
    PRIMARY KEY (app_id, version, channel)
);
"""

_FROM_1_TO_2: Final = f"""
ALTER TABLE series RENAME TO series_1;
{_SERIES}
INSERT INTO series SELECT series_id, 'capgo_stats_events', json_array(app_id, platform, action, version, environment),
    value, birth, last_ms FROM series_1;
DROP TABLE series_1;
{_DERIVED}
"""  # noqa: S608 -- fixed texts


def connect(path: Path) -> sqlite3.Connection:
    """Open the file for writing: WAL, and an fsync with every COMMIT.

    `synchronous=FULL` is what makes a commit in WAL mode survive a power cut (SQLite, "PRAGMA synchronous").
    """
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA fullfsync = ON")
        connection.execute("PRAGMA journal_size_limit = 67108864")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def create(connection: sqlite3.Connection) -> None:
    """Make the tables in an empty file, all or nothing."""
    connection.executescript(
        f"BEGIN IMMEDIATE;{TABLES}{_SERIES}{_DERIVED}"
        f"PRAGMA application_id = {APPLICATION_ID};PRAGMA user_version = {SCHEMA_VERSION};COMMIT;"
    )


def upgrade(connection: sqlite3.Connection) -> None:
    """Bring the tables of an older exporter up to date, all or nothing."""
    if connection.execute("PRAGMA user_version").fetchone()[0] < SCHEMA_VERSION:
        connection.executescript(f"BEGIN IMMEDIATE;{_FROM_1_TO_2}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;")
