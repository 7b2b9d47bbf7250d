"""A run's table and curves say what results.csv says."""

from __future__ import annotations

from pathlib import Path

from incrs import show
from incrs.results import POOLED, Row, Run

ABOUT = Run("0", "log", "star", "incmsr", 0)
ROWS = [
    Row(*ABOUT, t, "tune" if t == 7 else "test", scenario, "auc", 0.7 + t / 100, 100, 50)
    for t in range(7, 11)
    for scenario in (POOLED, "home")
]


def test_curves_are_a_picture_with_a_panel_for_each_scenario(tmp_path: Path) -> None:
    gaps = [ROWS[0]._replace(metric="oracle_auc"), ROWS[0]._replace(value=None, period=11)]
    show.draw_curves([*ROWS, *gaps], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert not list(tmp_path.glob(".*partial*"))


def test_new_and_known_users_have_a_table_of_their_own() -> None:
    def row(metric: str, value: float | None, rows: int) -> list[Row]:
        both = [ROWS[0]._replace(metric=metric, value=value, rows=rows, role="tune")]
        return [*both, both[0]._replace(role="test"), both[0]._replace(role="test", value=None)]

    rows = [
        *row("auc", 0.7, 100),
        *row("auc_new_users", 0.6, 20),
        *row("logloss_new_users", 0.5, 20),
    ]
    table = show.table_of_news(rows)
    assert [column.header for column in table.columns] == ["", "AUC", "log loss", "rows"]
    assert [list(column.cells) for column in table.columns] == [
        *(["new users"], ["0.6000"], ["0.5000"], ["20.0%"])
    ]
    assert not show.table_of_news([r for r in rows if r.metric == "auc"]).row_count


def test_a_run_table_has_a_line_for_each_period_and_each_role() -> None:
    table = show.table_of_run(ROWS, "auc", "AUC", {7: "2022-05-02"})
    assert [column.header for column in table.columns] == ["period", "role", "home", POOLED]
    assert table.row_count == 4 + 2
    assert list(table.columns[0].cells)[:2] == ["2022-05-02", "8"]
