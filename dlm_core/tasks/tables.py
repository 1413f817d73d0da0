"""A small table in the prompt, asked for one cell or for one row.

table: name price stock | pear 31 40 | fig 71 12; price of fig    71
table: name price stock | pear 31 40 | fig 71 12; row of fig      name: fig, price: 71, stock: 12
"""

from random import Random

from .example import Example

NAMES = (
    "pear fig plum apple grape lemon melon mango peach cherry olive nut bean corn rice pea leek "
    "onion carrot potato tomato pepper garlic radish bread cake pie soup tea milk"
).split()
COLUMNS = (
    "price stock sold weight size rank score age year week boxes shelf cost tax lot grade"
).split()


def _table(rng: Random, columns: int) -> tuple[str, dict[str, dict[str, int]]]:
    """Two to five rows of `columns` numbers of 10 to 99, as text and by row name and column."""
    header = rng.sample(COLUMNS, columns)
    names = rng.sample(NAMES, rng.randint(2, 5))
    rows = {name: {column: rng.randint(10, 99) for column in header} for name in names}
    lines = [" ".join(["name", *header])]
    lines += [" ".join([name, *map(str, row.values())]) for name, row in rows.items()]
    return "table: " + " | ".join(lines), rows


def lookup(rng: Random) -> Example:
    """One cell of a table of two to four columns of numbers."""
    table, rows = _table(rng, rng.randint(2, 4))
    name = rng.choice(list(rows))
    column = rng.choice(list(rows[name]))
    return Example("lookup", f"{table}; {column} of {name}", str(rows[name][column]))


def record(rng: Random) -> Example:
    """One row of a table of four to six columns of numbers, each cell with its column's name."""
    table, rows = _table(rng, rng.randint(4, 6))
    name = rng.choice(list(rows))
    cells = ", ".join(f"{column}: {value}" for column, value in rows[name].items())
    return Example("record", f"{table}; row of {name}", f"name: {name}, {cells}")
