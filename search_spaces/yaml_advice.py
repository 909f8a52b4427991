"""What to do about broken YAML. The parser's own words name its grammar; these name the letter to change."""

from __future__ import annotations

import re
from collections.abc import Sequence

import yaml

ANCHORS = "anchors and aliases (&name, *name) are not read; write the value out"
_STRANGE = "this line does not go on with what stands above; a file consists of lines `name: value`"
CLOSING = {"[": "]", "{": "}"}
_SPACED = re.compile(r"(\s*(?:- +)?)([\w.-]+):(\S.*)")  # `preset:tiny`: indent, name, value
_NAMED = re.compile(r"(\s*(?:- +)?)([\w.'\"-]+): +(\S.*)")  # `question: Muon: better?`


def advise(error: yaml.MarkedYAMLError, text: str) -> tuple[int, str]:
    """The line (from 1) of `text` to change, and how."""
    here, opened = error.problem_mark, error.context_mark
    assert here is not None, error
    lines = [*text.splitlines(), ""]
    context, problem = error.context or "", error.problem or ""
    if foreign := _foreign_space(lines, here.line):
        return foreign
    if "'\\t'" in problem:
        return here.line + 1, f"a tab stands in column {here.column + 1}; replace it by spaces"
    if "that cannot start any token" in problem:
        return here.line + 1, _quote_start(lines, here)
    if "mapping values are not allowed" in problem:
        return _colon(lines, here)
    if "sequence entries are not allowed" in problem:
        return here.line + 1, "a list with dashes begins on a line of its own; or write it in brackets: [1, 2]"
    if "anchor '" in context:
        return here.line + 1, ANCHORS
    if "single document" in context:
        return here.line + 1, "a second document begins here; keep one in a file"
    if opened is None:
        return _after_the_end(lines, here)
    if "a simple key" in context:
        return _no_colon(lines, opened.line)
    if "a quoted scalar" in context:
        quote = _letter(lines, opened)
        return opened.line + 1, f"the quote {quote} in column {opened.column + 1} is not closed"
    if "a double-quoted scalar" in context:
        return here.line + 1, "a backslash in double quotes begins a code such as \\n; use single quotes, or write \\\\"
    if (
        context.startswith("while scanning a") or "a node" in context or "a tag" in context
    ):  # alias, anchor, tag, directive, block of text
        return opened.line + 1, _quote_start(lines, opened)
    if "a flow " in context:
        return _brackets(lines, opened, here, problem)
    if "a block " in context:
        return here.line + 1, _block(lines, here, problem)
    return here.line + 1, f"not valid YAML: {', '.join(part for part in (context, problem) if part)}"


def space_after_colon(text: str) -> str | None:
    """What to do about `steps:20`, which YAML takes for one word; None for another text."""
    found = _SPACED.fullmatch(text)
    return f"write a space after the colon: {found[2]}: {found[3]}" if found else None


def _foreign_space(lines: Sequence[str], line: int) -> tuple[int, str] | None:
    """About a space in the line, or the one before, that looks like one and is none."""
    for number in (line - 1, line):
        if number >= 0 and (found := re.search(r"[^\S \t\r\n]", lines[number])):
            return number + 1, f"a space here is none (U+{ord(found[0]):04X}, from a web page?); type it again"
    return None


def _quote_start(lines: Sequence[str], mark: yaml.Mark) -> str:
    line = lines[mark.line]
    written = f": {_quoted(line)}" if (found := _NAMED.fullmatch(line)) and found.start(3) == mark.column else ""
    return f"a text that begins with {_letter(lines, mark)} goes in quotes{written}"


def _quoted(line: str) -> str:
    """A line `name: value` with its value in single quotes."""
    found = _NAMED.fullmatch(line)
    assert found is not None, line
    value = found[3].strip()
    inner = value[1:-1] if value[0] in "'\"" and value[-1] == value[0] else value
    doubled = inner.replace("'", "''")
    return f"{found[2]}: '{doubled}'"


def _colon(lines: Sequence[str], here: yaml.Mark) -> tuple[int, str]:
    """About a second colon in a line, or one in a line that the parser reads as going on with the line above."""
    line = lines[here.line]
    if (found := _NAMED.fullmatch(line)) and len(found[1] + found[2]) < here.column:
        return here.line + 1, f"a text that holds a colon goes in quotes: {_quoted(line)}"
    above = _line_above(lines, here.line)
    if above is None:
        return here.line + 1, "this colon belongs to no name; a text that holds a colon goes in quotes"
    if advice := space_after_colon(lines[above]):
        return above + 1, advice
    if re.match(r"\s*-\w", lines[above]):
        return above + 1, f"write a space after the dash: - {lines[above].strip().removeprefix('-')}"
    if _begin(lines[above], item=False)[0] == _begin(line, item=False)[0]:
        return _no_colon(lines, above)
    return here.line + 1, _indent(lines, here.line)


def _no_colon(lines: Sequence[str], number: int) -> tuple[int, str]:
    if advice := space_after_colon(lines[number]):
        return number + 1, advice
    return number + 1, f"{lines[number].strip()!r} has no colon after its name; write `name: value`"


def _after_the_end(lines: Sequence[str], here: yaml.Mark) -> tuple[int, str]:
    above = _line_above(lines, here.line)
    if above is not None and _width(lines[above]) > _width(lines[here.line]):
        return here.line + 1, _indent(lines, here.line)
    return here.line + 1, _STRANGE


def _brackets(lines: Sequence[str], opened: yaml.Mark, here: yaml.Mark, problem: str) -> tuple[int, str]:
    """About what a list or mapping in brackets has in the wrong place."""
    if "node content" in problem:
        return here.line + 1, "nothing stands between two commas or a bracket and a comma; remove one"
    opening, found = _letter(lines, opened), _letter(lines, here)
    closing = CLOSING[opening]
    if found in CLOSING.values():
        return here.line + 1, f"the {opening} in column {opened.column + 1} needs its {closing} before this {found}"
    if not _is_closed(lines, opened):
        return opened.line + 1, f"the {opening} in column {opened.column + 1} is not closed; add {closing}"
    if found == ":":
        return here.line + 1, "a comma is missing between two entries; or a text that holds a colon needs quotes"
    return here.line + 1, f"a comma is missing before column {here.column + 1}"


def _is_closed(lines: Sequence[str], opened: yaml.Mark) -> bool:
    """Whether as many brackets close as open from this one on; brackets in texts and comments are counted too."""
    depth = 0
    for letter in "\n".join([lines[opened.line][opened.column :], *lines[opened.line + 1 :]]):
        depth += (letter in CLOSING) - (letter in CLOSING.values())
        if not depth:
            return True
    return False


def _block(lines: Sequence[str], here: yaml.Mark, problem: str) -> str:
    """About a line that does not fit those around it, or what follows a value on its line."""
    line = lines[here.line]
    found = _letter(lines, here)
    if found in CLOSING.values():
        return f"this {found} closes nothing; remove it"
    if found == ":":
        return "nothing stands before the colon"
    if line[: here.column].strip(" -"):
        named = _NAMED.fullmatch(line)
        if named and named[3][0] in "'\"":
            return f"the quotes end before column {here.column + 1}; write {_quoted(line)}"
        return f"a comma or a line break is missing before column {here.column + 1}"
    if found == "-" and "sequence start" not in problem:
        return "a `- ` item among lines `name: value`; begin every item of the list with `- `, or none"
    return _indent(lines, here.line)


def _indent(lines: Sequence[str], line: int) -> str:
    """That `line` begins in a column that fits nothing above it."""
    item = lines[line].lstrip().startswith("- ")
    above = _line_above(lines, line, "- " if item else "")
    here = _begin(lines[line], item)
    if above is None:
        return f"`{here[1]}` begins in column {here[0]}, which fits no line above; remove the spaces before it"
    there = _begin(lines[above], item)
    if here[0] == there[0]:
        return _STRANGE
    together = "items of one list" if item else "names that belong together"
    return (
        f"`{here[1]}` begins in column {here[0]}, but `{there[1]}` of line {above + 1} in column {there[0]}; "
        f"{together} begin in one column"
    )


def _begin(line: str, item: bool) -> tuple[int, str]:
    """The column (from 1) in which the item or the name of a line begins, and what stands there."""
    found = re.match(r"( *)(-)" if item else r"((?: |- )*)([^\s:]+|\S*)", line)
    assert found is not None, line
    return found.end(1) + 1, found[2]


def _line_above(lines: Sequence[str], line: int, start: str = "") -> int | None:
    """The nearest line above with something on it that begins with `start`."""
    for number in range(line - 1, -1, -1):
        content = lines[number].strip()
        if content and not content.startswith("#") and content.startswith(start):
            return number
    return None


def _letter(lines: Sequence[str], mark: yaml.Mark) -> str:
    """What stands at `mark`; empty at the end of a line."""
    return lines[mark.line][mark.column : mark.column + 1] if mark.line < len(lines) else ""


def _width(line: str) -> int:
    return len(line) - len(line.lstrip(" "))
