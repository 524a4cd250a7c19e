"""A progress bar for what takes long; a line for each tenth of it where there is no terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from softcard.cli.output import err

LINES = 10


@contextmanager
def progress_bar() -> Iterator[Callable[[str, float], None]]:
    """Gives a function to be called with what is being done, and the share that is done."""
    if not err().is_terminal:
        said: list[tuple[str, int]] = []

        def line(doing: str, share: float) -> None:
            step = (doing, int(share * LINES))
            if step not in said:
                said.append(step)
                err().print(f"{share:4.0%} {doing}", markup=False)

        yield line
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=err(), transient=True) as bar:
        task = bar.add_task("starting", total=1.0)

        def update(doing: str, share: float) -> None:
            bar.update(task, description=doing, completed=share)

        yield update
