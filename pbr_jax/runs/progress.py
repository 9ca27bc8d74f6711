"""Progress bars of every command, of one look: a bar over the line, a count, and what goes on.

What `rich` draws goes through `Terminal`, so that a reader who is gone is seen where others are.
"""

import contextlib
from collections.abc import Callable, Iterator

import rich.console
import rich.progress
from rich.table import Column


class Terminal(rich.console.Console):
    """A console that passes `BrokenPipeError` on; `rich` itself would end the program."""

    def on_broken_pipe(self) -> None:
        raise  # it is called where the exception is handled


def make_bar(
    console: rich.console.Console,
    *columns: rich.progress.ProgressColumn,
    transient: bool = False,
) -> rich.progress.Progress:
    """A bar and the count of what is done, then `columns`: by default times and description.

    A transient bar vanishes at its end, and prints nothing where there is no terminal.
    """
    shown = columns or (
        rich.progress.TimeElapsedColumn(),
        rich.progress.TimeRemainingColumn(),
        rich.progress.TextColumn("{task.description}", markup=False),
    )
    return rich.progress.Progress(
        rich.progress.BarColumn(None, table_column=Column(ratio=1, min_width=4)),
        rich.progress.MofNCompleteColumn(),
        *shown,
        console=console,
        expand=True,
        transient=transient,
        disable=transient and not console.is_terminal,
    )


@contextlib.contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[str], None]]:
    """Shows a bar on standard error; yields what is called with a name after each part of `total`.

    It may be called on any thread.
    """
    with make_bar(Terminal(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total)

        def done(name: str) -> None:
            bar.update(task, advance=1, description=f"{description}: {name}")

        yield done
