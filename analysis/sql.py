"""SQL over the result tables, through Polars' SQLContext; a mistake in the question is one line with the remedy."""

from __future__ import annotations

import re
from collections.abc import Sequence

import polars as pl

from analysis.store import Store
from muon_core.spelling import did_you_mean
from muon_core.store.reader import relisting
from muon_core.tables import SWEEP_RUNS, TABLES

READING = ("select", "with", "show", "describe")
"""First words of the statements that only read. The effect of others would last no longer than the query."""
_COMMENTS = re.compile(r"""('(?:[^']|'')*'|"[^"]*")|--[^\n]*|/\*.*?\*/""", re.DOTALL)
"""Texts and quoted names, which stay, and comments, which do not."""
_DECIMALS = re.compile(r"""('(?:[^']|'')*'|"[^"]*")|(?<![\w.])(?P<number>\d+\.\d*|\.\d+)(?![\w.])""")
"""The same, and numbers that Polars would take for decimals, whose quotients it rounds to seven digits."""
_DESCRIBE = re.compile(r"\s*describe\s+(?:table\s+)?(?P<name>\S+?)\s*;?\s*", re.IGNORECASE)
_FILES = re.compile(r"""\b(?P<name>(?:read|scan)_\w+)["`]?\s*\(""", re.IGNORECASE)
"""Functions that are tables of other files."""
_WORDS = re.compile(r"""'(?:[^']|'')*'|"[^"]*"|[A-Za-z_]\w*(?:\.\w+)+""")
"""Texts, quoted names, and names with dots, so that these are found outside of those."""
_TEXTS = re.compile(r"'(?:[^']|'')*'")
_UNKNOWN_TABLE = re.compile(r"relation '(?P<name>[^']*)' was not found")
_UNKNOWN_COLUMN = re.compile(r"""(?:unable to find column|no column named) ["'](?P<name>[^"']*)["']""")


def query(store: Store, sql: str) -> pl.DataFrame:
    """The answer to one SELECT over the tables of `store`, each listed only if `sql` names it.

    `SHOW TABLES` lists the tables, `DESCRIBE TABLE runs` the columns of one and what they mean.

    Raises ValueError with one line for a statement that does not read, is no SQL, reads other files, or names what
    there is not.
    """
    sql = _COMMENTS.sub(lambda found: found[1] or " ", sql)
    word = next(iter(re.findall(r"\w+", sql.lower())), "")
    if word not in READING:
        raise ValueError(
            f"a query begins with SELECT, WITH, SHOW TABLES or DESCRIBE, not {word!r}; it only reads the store"
        )
    if word == "describe":
        return _describe(store, sql)
    if other := _FILES.search(_TEXTS.sub("''", sql)):
        raise ValueError(f"{other['name']} opens other files; a query reads the tables of the store only")
    names, sql = _tables_in(sql), _in_floats(sql)
    try:
        return relisting(lambda: _execute(store, sql, names))
    except pl.exceptions.PolarsError as error:
        raise ValueError(_explain(str(error), {name: _columns(store, name) for name in names})) from error


def matching(rows: pl.DataFrame, condition: str, named: Sequence[str]) -> pl.DataFrame:
    """Those of `rows` for which a condition in SQL holds; a column with dots in its name needs no quotes there.

    Raises ValueError with one line, which lists the columns `named`, for what is no condition or has other columns.
    """
    quoted = _WORDS.sub(lambda word: word[0] if word[0][0] in "'\"" else f'"{word[0]}"', _in_floats(condition))
    try:
        return pl.SQLContext(runs=rows, eager=True).execute(f"SELECT * FROM runs WHERE ({quoted})")  # noqa: S608
    except pl.exceptions.PolarsError as error:
        message, listed = _explain(str(error), {"runs": list(named)}), ", ".join(named)
        raise ValueError(message if listed in message else f"{message}; the columns are {listed}") from error


def _in_floats(sql: str) -> str:
    """`sql` with its decimal numbers as floats."""
    return _DECIMALS.sub(lambda found: found[1] or f"{found['number']}e0", sql)


def _describe(store: Store, sql: str) -> pl.DataFrame:
    """The columns of the table that `sql` names: `column`, `type`, `meaning`."""
    asked = _DESCRIBE.fullmatch(sql)
    name = asked["name"].strip('"').lower() if asked else ""
    if name not in TABLES:
        raise ValueError(f"DESCRIBE wants one of the tables: {', '.join(TABLES)}{did_you_mean(name, TABLES)}")
    meanings = {column: meaning for column, (_, meaning) in (SWEEP_RUNS.columns | TABLES[name].columns).items()}
    schema = store.table(name).collect_schema()
    rows = [(column, str(dtype), meanings[column]) for column, dtype in schema.items()]
    return pl.DataFrame(rows, ["column", "type", "meaning"], orient="row")


def _execute(store: Store, sql: str, names: list[str]) -> pl.DataFrame:
    frames = {name: store.table(name) for name in names}
    return pl.SQLContext(frames, eager=False).execute(sql).collect()


def _tables_in(sql: str) -> list[str]:
    """The tables whose name stands in `sql`; all if none does, as SHOW TABLES wants them."""
    words = set(re.findall(r"\w+", sql.lower()))
    return [name for name in TABLES if name in words] or list(TABLES)


def _columns(store: Store, name: str) -> list[str]:
    return store.table(name).collect_schema().names()


def _explain(message: str, columns: dict[str, list[str]]) -> str:
    """Polars' `message` in one line, with the names there are: `columns` maps the tables asked to theirs."""
    if unknown := _UNKNOWN_TABLE.search(message):
        return (
            f"no table {unknown['name']!r}{did_you_mean(unknown['name'], TABLES)}; the tables are {', '.join(TABLES)}"
        )
    if unknown := _UNKNOWN_COLUMN.search(message):
        known = [name for names in columns.values() for name in names]
        listed = "; ".join(f"{table}: {', '.join(names)}" for table, names in columns.items())
        near = did_you_mean(unknown["name"], known) or f" (a text has single quotes: '{unknown['name']}')"
        return f"no column {unknown['name']!r}{near}; the columns are {listed}"
    first = message.strip().partition("\n")[0].rstrip(":") or "no answer"
    return f"Polars cannot answer this query: {first} (docs/queries.md has examples)"
