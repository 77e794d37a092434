"""The pictures in the documents: numbers, tables and transformations as Grafana has them."""

import pytest

from grafana.pictures.asking import Line
from grafana.pictures.tables import Table, group, merge, organize
from grafana.pictures.texts import number
from tests.support.dashboards import ROOT


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.1234, "percentunit", "12.3 %"),
        (4.6e-17, "percentunit", "0 %"),
        (1.0, "percentunit", "100 %"),
        (0.25, "s", "250 ms"),
        (0.0, "s", "0 s"),
        (15.0, "s", "15 s"),
        (90.0, "s", "1.5 min"),
        (5400.0, "s", "1.5 h"),
        (129_600.0, "s", "1.5 days"),
        (4142.0, "short", "4.14 k"),
        (7.0, "short", "7"),
        (0.25, "short", "0.25"),
        (2_500_000.0, "bytes", "2.5 MB"),
        (1_751_313_600_000.0, "dateTimeAsIso", "2025-06-30 20:00"),
        (float("nan"), "short", "-"),
    ],
)
def test_numbers_read_as_in_grafana(value: float, unit: str, text: str) -> None:
    """Each unit of the dashboards has its form."""
    assert text == number(value, unit)


def test_answers_are_merged_where_their_labels_agree() -> None:
    """A row for each set of labels, a column for each target; the last sample is the cell."""
    failed = [
        Line("", {"version": "2.0.0", "__name__": "a"}, [(1, 3.0), (2, 4.0)]),
        Line("", {"version": "1.0.0"}, [(1, 1.0)]),
    ]
    installed = [Line("", {"version": "2.0.0", "__name__": "b"}, [(1, 9.0)])]
    assert [
        {"version": "2.0.0", "Value #A": 4.0, "Value #B": 9.0},
        {"version": "1.0.0", "Value #A": 1.0},
    ] == merge([("A", failed), ("B", installed)])


def test_rows_are_grouped_and_organized() -> None:
    """Sums by a column; then columns are renamed, ordered, left out, and rows sorted, empty cells last."""
    fields = {
        "os": {"operation": "groupby", "aggregations": []},
        "count": {"operation": "aggregate", "aggregations": ["sum"]},
    }
    rows = [{"os": "14", "count": 1}, {"os": "15", "count": 5}, {"os": "14", "count": 2}]
    grouped = group(rows, fields)
    assert [{"os": "14", "count (sum)": 3.0}, {"os": "15", "count (sum)": 5.0}] == grouped
    options = {
        "excludeByName": {"Time": True},
        "indexByName": {"count (sum)": 1, "os": 0},
        "renameByName": {"os": "OS", "count (sum)": "Events"},
    }
    by_events = [{"displayName": "Events", "desc": True}]
    assert Table(["OS", "Events"], [["15", 5.0], ["14", 3.0], ["16", None]]) == organize(
        [*grouped, {"os": "16", "Time": 1.0}], options, by_events
    )


def test_documents_show_every_picture() -> None:
    """The documents have all pictures that are drawn."""
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    drawn = sorted(path.name for path in (ROOT / "docs" / "pictures").iterdir())
    assert drawn
    assert [] == [name for name in drawn if f"(pictures/{name})" not in text]
