"""Medians, and tables in Markdown that say whether what is wanted was met. Nothing here decides whether a run passes."""

import statistics


class Samples:
    """Numbers by side, in the order of the sides."""

    def __init__(self):
        self.of = {}

    def add(self, side, value):
        self.of.setdefault(side, []).append(value)

    def median(self, side):
        return statistics.median(self.of[side])

    def sides(self):
        return list(self.of)


class Table:
    def __init__(self, title, columns, note=""):
        self.title = title
        self.columns = columns
        self.note = note
        self.rows = []

    def row(self, *cells):
        self.rows.append(["" if cell is None else str(cell) for cell in cells])

    def markdown(self):
        kinds = ["---" if number == 0 or column == "met" else "---:" for number, column in enumerate(self.columns)]
        lines = [f"### {self.title}", ""]
        if self.note:
            lines += [self.note, ""]
        for cells in [self.columns, kinds, *self.rows]:
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines) + "\n"


class Wanted(Table):
    """Ratios of two figures of the same run beside what is wanted of them."""

    def __init__(self, title, note=""):
        super().__init__(title, ["", "figure", "wanted", "met"], note)

    def at_least(self, what, figure, limit, digits=2):
        self.row(what, f"{figure:.{digits}f}", f"at least {limit:g}", met(figure >= limit))

    def at_most(self, what, figure, limit, digits=2):
        self.row(what, f"{figure:.{digits}f}", f"at most {limit:g}", met(figure <= limit))


def met(is_met):
    return "yes" if is_met else "**no**"


def milliseconds(seconds, digits=1):
    return f"{seconds * 1000:.{digits}f}"


def megabytes(count):
    return f"{count / 1e6:,.0f}"
