"""Tables in a terminal: columns that are cut where there is no room."""

import shutil
import sys

#: the least width of a column that is cut on a narrow terminal
MIN_WIDTH = 24


def format_table(header: tuple[str, ...], rows: list[tuple[str, ...]], width: int | None = None) -> str:
    """Write a table of left-aligned columns, two spaces apart.

    Args:
        header: names of the columns.
        rows: cells as text.
        width: that lines must not exceed: the widest columns are cut, the last ones left out, but never the first.
    """
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    if width is not None:
        least = [min(w, max(MIN_WIDTH, len(name))) for w, name in zip(widths, header, strict=True)]
        least[0] = widths[0]
        while len(least) > 1 and sum(least) + 2 * (len(least) - 1) > width:
            least.pop()
        widths = widths[: len(least)]
        while len(least) > 1 and sum(widths) + 2 * (len(widths) - 1) > width:
            widest = max(range(1, len(widths)), key=lambda i: widths[i] - least[i])
            widths[widest] -= 1
    lines = ["  ".join(_cut(cell, w).ljust(w) for cell, w in zip(row, widths, strict=False)) for row in [header, *rows]]
    return "\n".join(line.rstrip() for line in lines)


def terminal_width() -> int | None:
    """Width of the terminal in characters; None where the output goes into a file or another program.

    ``COLUMNS`` alone does not count there: readline sets it for every child of a Python that imported it.
    """
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _cut(cell: str, width: int) -> str:
    return cell if len(cell) <= width else f"{cell[: width - 1]}…"
