"""What `knapsack-rl simulate` does: run, write, draw, and say so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from knapsack_rl.experiments.pages.page import alone, refuse_others
from knapsack_rl.experiments.simulate import results
from knapsack_rl.experiments.simulate.report import write_report
from knapsack_rl.experiments.simulate.results import Grid, SimulationTables
from knapsack_rl.experiments.simulate.worlds import SHOWN

_COLUMNS = {
    "success_rate": ("success\nrate", "{:.3f}"),
    "success_rate_gap_closed": ("gap\nclosed", "{:.2f}"),
    "held_out_success_rate": ("held\nout", "{:.3f}"),
    "effective_gradient_ratio": ("EGR", "{:.3f}"),
    "unsolved": ("unsolved", "{:,.0f}"),
    "largest_budget": ("largest\nbudget", "{:.0f}"),
    "belief_rmse": ("belief\nRMSE", "{:.3f}"),
}
"""Column of the results -> (heading, format)."""


def simulate(grid: Grid, output: Path, command: str, console: Console) -> Path:
    """Simulate the grid into `output` and return the path of its page.

    Raises:
        InvalidInputError: `output` has files of others that would give way, or cannot be written to.
    """
    refuse_others(output, "report.html", *results.files())
    runs = list(grid.runs())
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("simulating", total=len(runs) * grid.steps)

        def begin(name: str) -> Callable[[], object]:
            bar.update(task, description=name)
            return lambda: bar.advance(task)

        tables = results.run(grid, begin)
    console.print(summary(tables))
    with console.status("drawing"), alone(output):
        results.write(tables, output)
        return write_report(tables, output / "report.html", command)


def theory(output: Path, command: str) -> Path:
    """Write the page of theory alone and return its path."""
    refuse_others(output, "report.html")
    with alone(output):
        return write_report(None, output / "report.html", command)


def summary(tables: SimulationTables) -> Table:
    """The results, mean over seeds, as the console shows them."""
    seeds = ", ".join(map(str, tables.settings["seeds"]))
    table = Table(title=f"simulated, {tables.settings['steps']:,} steps, seeds {seeds}")
    table.add_column("run", overflow="fold")
    for heading, _ in _COLUMNS.values():
        table.add_column(heading, justify="right")
    for (world, optimizer), rows in tables.results.groupby(["world", "optimizer"], sort=False):
        table.add_section()
        table.add_row(str(world), SHOWN[str(optimizer)], style="bold")
        for run, row in rows.groupby("run", sort=False)[[*_COLUMNS]].mean().iterrows():
            known = {key: form for key, (_, form) in _COLUMNS.items() if row[key] == row[key]}
            table.add_row(str(run), *(known[key].format(row[key]) if key in known else "" for key in _COLUMNS))
    return table
