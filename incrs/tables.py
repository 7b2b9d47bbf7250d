"""The summary of some runs as text: tables for a terminal, Markdown or LaTeX."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from rich import box
from rich.table import Table

from incrs import results
from incrs.console import number, terminal
from incrs.summary import Line

WORDS = ("data", "model", "updater")
"""The columns of the summary that hold words."""
NARROW = 14
"""How many letters of a label there is room for at least."""
TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
TEX |= {c: f"\\{c}" for c in "&%$#_{}"} | {"±": r"$\pm$", "<": "$<$"}


def cells_of(
    lines: Sequence[Line], baseline: str, metrics: tuple[str, str]
) -> list[dict[str, str]]:
    """Return the summary as text: a mapping from head to cell for each line."""
    main, second = map(results.title, metrics)
    names = list(dict.fromkeys(name for line in lines for name in line.by_scenario))
    heads = heads_of(baseline)
    return [
        {"data": line.data, "model": line.model, "updater": line.updater}
        | {"seeds": str(line.seeds), main: _level(line)}
        | dict(zip(heads, _difference(line), strict=True))
        | {second: number(line.second)}
        | {"s/period": "-" if line.seconds is None else f"{line.seconds:.2f}"}
        | {f"{main} {name}": number(line.by_scenario.get(name)) for name in names}
        for line in lines
    ]


def heads_of(baseline: str) -> tuple[str, ...]:
    """Return the heads of the columns that tell of the differences to a baseline."""
    return ("%", f"minus {baseline} (95%)", "cautious ±", "effect (95%)", "p", "signed rank p")


def _level(line: Line) -> str:
    return number(line.value) + ("" if line.deviation is None else f" ± {line.deviation:.4f}")


def _difference(line: Line) -> tuple[str, ...]:
    """Return the cells of the differences to the baseline, the star with the p that it stands for."""
    gap = line.gap
    if gap is None or line.p is None or line.wilcoxon_p is None:
        return ("-",) * 6
    if gap.same:
        return "0.00", "no difference", "-", "-", "1", "1"
    share = "-" if line.relative is None else f"{100 * line.relative:+.2f}"
    cautious = "-" if gap.cautious is None else f"{gap.cautious:.5f}"
    p = _p(line.p) + line.star
    effect = f"{gap.effect:+.2f} [{gap.effect_low:+.1f}, {gap.effect_high:+.1f}]"
    if math.isinf(gap.effect):
        effect = "all alike"
    interval = f"{gap.difference:+.5f} ± {gap.half_width:.5f}"
    return share, interval, cautious, effect, p, _p(line.wilcoxon_p)


def _p(p: float) -> str:
    return "<.001" if p < 0.001 else "1" if p >= 0.9995 else f"{p:.3f}"[1:]


def print_tables(lines: Sequence[Line], baseline: str, role: str, metrics: tuple[str, str]) -> None:
    """Print the tables of one log: levels, differences, scenarios."""
    main, second = map(results.title, metrics)
    cells = cells_of(lines, baseline, metrics)
    models = list(dict.fromkeys(line.model for line in lines))
    share, *differences = heads_of(baseline)
    scenarios = list(cells[0])[list(cells[0]).index("s/period") + 1 :]
    over = [_counted({line.seeds for line in lines}, "seed")]
    over += [_counted({line.periods for line in lines}, f"{role} period")]
    what = ", ".join([lines[0].data, *(models if len(models) == 1 else [])])
    spread = ", ± deviation over seeds" if any(line.deviation is not None for line in lines) else ""
    levels = [main, share, second, "s/period"]
    if len({line.seeds for line in lines}) > 1:
        levels.insert(0, "seeds")
    tables = [(f"{what}: means over {' and '.join(over)}{spread}", levels)]
    if any(line.gap for line in lines):
        tables.append((f"{main} minus {baseline}'s", differences))
    for i in range(0, len(scenarios) if len(scenarios) > 1 else 0, 6):
        tables.append((f"{main} by scenario", scenarios[i : i + 6]))
    names = {
        share: f"% of\n{baseline}",
        "cautious ±": "cautious\n±",
        "signed rank p": "signed\nrank p",
    }
    names |= {f"minus {baseline} (95%)": "difference\n(95%)", "effect (95%)": "effect\n(95%)"}
    for title, shown in tables:
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.show_edge = table.pad_edge = False
        table.add_column("updater")
        room = terminal.width
        for head in shown:
            name = names.get(head, head.removeprefix(f"{main} "))
            table.add_column(name, justify="right", vertical="top")
            room -= 2 + max(map(len, [*name.split("\n"), *(one[head] for one in cells)]))
        for model in models:
            if len(models) > 1:
                table.add_row(model, style="bold")
            for one in cells:
                if one["model"] == model and any(one[head] != "-" for head in shown):
                    label = folded(one["updater"], max(room, NARROW))
                    table.add_row(label, *(one[head] for head in shown))
            table.add_section()
        terminal.print(table)
        terminal.print()


def _counted(numbers: set[int], what: str) -> str:
    """Return 3 seeds, 1 seed, or seeds where their number differs."""
    if len(numbers) > 1:
        return f"{what}s"
    (number,) = numbers
    return f"{number} {what}{'s' if number > 1 else ''}"


def folded(label: str, width: int) -> str:
    """Return a label in lines of `width` letters, broken between settings, then behind their `=`."""
    lines = [""]
    for part in label.split(" "):
        if lines[-1] and len(lines[-1]) + 1 + len(part) > width:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + part
        key, equals, value = lines[-1].partition("=")
        if equals and len(lines[-1]) > width:
            lines[-1:] = [f"{key}=", value]
    return "\n".join(lines)


def as_markdown(heads: Sequence[str], table: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    rule = ["---" if head in WORDS else "---:" for head in heads]
    escaped = [[re.sub(r"([|*<])", r"\\\1", cell) for cell in row] for row in (heads, rule, *table)]
    return ["| " + " | ".join(row) + " |" for row in escaped]


def as_latex(heads: Sequence[str], table: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a LaTeX table for the package booktabs, a star raised as papers print it."""

    def row(cells: Sequence[str]) -> str:
        texts = ["".join(TEX.get(c, c) for c in cell) for cell in cells]
        texts = [re.sub(r"(\(?\*\)?)$", r"$^{\1}$", text) for text in texts]
        return " & ".join(re.sub(r"(?<!\w)([+-][\d.]+)", r"$\1$", t) for t in texts) + r" \\"

    columns = "".join("l" if head in WORDS else "r" for head in heads)
    return [
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        row(heads),
        r"\midrule",
        *map(row, table),
        r"\bottomrule",
        r"\end{tabular}",
    ]
