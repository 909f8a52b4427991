"""Strict YAML: the 1.2 core types, line numbers, and everything that is refused."""

import math

import pytest

from search_spaces.strict_yaml import MAX_DEPTH, YamlError, parse
from search_spaces.yaml_advice import ANCHORS, space_after_colon


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("5E2", 500.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-.inf", -math.inf),
        ("+3", 3),
        ("012", 12),
        ("0o17", 15),
        ("0x1F", 31),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("null", None),
        ("off", "off"),
        ("no", "no"),
        ("yes", "yes"),
        ("On", "On"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2001-01-01", "2001-01-01"),
        ("'5'", "5"),
        ("!!str 5", "5"),
        ("<<", "<<"),
        ("'1e-3'", "1e-3"),
        (".", "."),
    ],
)
def test_parse_reads_yaml_1_2_scalars(text: str, value: object) -> None:
    read = parse(f"key: {text}").value["key"]
    assert read == value
    assert type(read) is type(value)


def test_parse_reads_nan_as_a_number() -> None:
    assert math.isnan(parse(".nan").value)


def test_parse_gives_every_key_and_item_its_line() -> None:
    document = parse("a: 1\nb:\n  - x\n  - {c: 2,\n     d: 3}\n")
    assert document.value == {"a": 1, "b": ["x", {"c": 2, "d": 3}]}
    assert document.lines == {
        (): 1,
        ("a",): 1,
        ("b",): 2,
        ("b", 0): 3,
        ("b", 1): 4,
        ("b", 1, "c"): 4,
        ("b", 1, "d"): 5,
    }


@pytest.mark.parametrize("text", ["", "# only a comment\n"])
def test_parse_of_nothing_is_none(text: str) -> None:
    assert parse(text).value is None


def refused(text: str) -> tuple[int, str]:
    with pytest.raises(YamlError) as caught:
        parse(text)
    return caught.value.line, str(caught.value)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\nb: 2\na: 3", 3, "'a' is given in line 1 already; keep one of them"),
        ("x:\n  a: 1\n  'a': 1", 3, "'a' is given in line 2 already; keep one of them"),
        ("a: &anchor 1\nb: *anchor", 2, ANCHORS),
        ("a: &x 1\nb: &x 2", 2, ANCHORS),
        ("1: a", 1, "a name must be text, got 1; put it in quotes"),
        ("true: a", 1, "a name must be text, got true; put it in quotes"),
        (
            "a: {{ b }}",
            1,
            "a list or mapping stands where a name should; write the value out (no {{template}} is filled in)",
        ),
        (
            "a: !!python/object/apply:os.system [ls]",
            1,
            "tag 'tag:yaml.org,2002:python/object/apply:os.system' is not read; write plain values",
        ),
        ("a: !yes b", 1, "tag '!yes' is not read for 'b'; write the value alone, or in quotes"),
        ("\n" + "[" * (MAX_DEPTH + 1), 2, "nested more than 32 levels deep"),
        ("a: " + "9" * 5000, 1, "number 99999999999999999999... has too many digits"),
        ("a: b\n---\nc: d", 2, "a second document begins here; keep one in a file"),
        ("a: 1\nb: \x00", 2, "character U+0000 is not allowed; remove it"),
    ],
)
def test_parse_refuses_with_the_line(text: str, line: int, message: str) -> None:
    assert refused(text) == (line, message)


TOGETHER = "names that belong together begin in one column"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        # tabs and other spaces
        ("a:\n\t- b", 2, "a tab stands in column 1; replace it by spaces"),
        ("a:\tb", 1, "a tab stands in column 3; replace it by spaces"),
        ("a:\n\u00a0 b: 1\n  c: 2", 2, "a space here is none (U+00A0, from a web page?); type it again"),
        # colons
        ("n: 1\nquestion: Muon: better?", 2, "a text that holds a colon goes in quotes: question: 'Muon: better?'"),
        ("- question: it's this:", 1, "a text that holds a colon goes in quotes: question: 'it''s this:'"),
        ("preset:tiny\nseeds: [1]", 1, "write a space after the colon: preset: tiny"),
        ("a: 1\npreset:tiny\nseeds: [1]", 2, "write a space after the colon: preset: tiny"),
        ("a: 1\npreset:tiny", 2, "write a space after the colon: preset: tiny"),
        ("a: {steps:20, b: 1}", 1, "write a space after the colon: steps: 20"),
        ("a: 1\nseeds [1, 2]\nb: 1", 2, "'seeds [1, 2]' has no colon after its name; write `name: value`"),
        ("seeds\nb: 1", 1, "'seeds' has no colon after its name; write `name: value`"),
        ("a: 1\n: 2", 2, "nothing stands before the colon"),
        # indents
        ("b:\n  - n: a\n   role: b", 3, f"`role` begins in column 4, but `n` of line 2 in column 5; {TOGETHER}"),
        ("b:\n  - n: a\n\n     role: b", 4, f"`role` begins in column 6, but `n` of line 2 in column 5; {TOGETHER}"),
        ("a: 1\n b: 2", 2, f"`b` begins in column 2, but `a` of line 1 in column 1; {TOGETHER}"),
        ("a:\n    b: 1\n  # why\n  c: 2", 4, f"`c` begins in column 3, but `b` of line 2 in column 5; {TOGETHER}"),
        ("  a: 1\nb: 2", 2, f"`b` begins in column 1, but `a` of line 1 in column 3; {TOGETHER}"),
        (
            "b:\n  - n: a\n   - n: b",
            3,
            "`-` begins in column 4, but `-` of line 2 in column 3; items of one list begin in one column",
        ),
        ("b:\n  -n: a\n   role: b", 2, "write a space after the dash: - n: a"),
        (
            "b:\n  n: a\n  - n: b",
            3,
            "a `- ` item among lines `name: value`; begin every item of the list with `- `, or none",
        ),
        ("a: - 1", 1, "a list with dashes begins on a line of its own; or write it in brackets: [1, 2]"),
        (
            "[a]\nb: 1",
            2,
            "this line does not go on with what stands above; a file consists of lines `name: value`",
        ),
        # brackets
        ("seeds: [1, 2\npreset: tiny", 1, "the [ in column 8 is not closed; add ]"),
        ("a: 1\nseeds: [1, 2", 2, "the [ in column 8 is not closed; add ]"),
        ("b:\n  - {n: a, grid: {c: [1]}\n  - {n: b}", 2, "the { in column 5 is not closed; add }"),
        ("grid: {alpha: [1, 2}}", 1, "the [ in column 15 needs its ] before this }"),
        ("seeds: [1, 2]]", 1, "this ] closes nothing; remove it"),
        ("a: {b: 1 c: 2}", 1, "a comma is missing between two entries; or a text that holds a colon needs quotes"),
        ("a: [[1] [2]]", 1, "a comma is missing before column 9"),
        ("a: [1] b", 1, "a comma or a line break is missing before column 8"),
        ("a: [1,,2]", 1, "nothing stands between two commas or a bracket and a comma; remove one"),
        # quotes
        ("a: 'b\nc: 1", 1, "the quote ' in column 4 is not closed"),
        ("q: 'it's better'", 1, "the quotes end before column 8; write q: 'it''s better'"),
        ('q: "is "Muon" it"', 1, "the quotes end before column 9; write q: 'is \"Muon\" it'"),
        (
            'q: "C:\\data"',
            1,
            "a backslash in double quotes begins a code such as \\n; use single quotes, or write \\\\",
        ),
        ("q: @x", 1, "a text that begins with @ goes in quotes: q: '@x'"),
        ("q: *bold* x", 1, "a text that begins with * goes in quotes: q: '*bold* x'"),
        ("q: > 5 better", 1, "a text that begins with > goes in quotes: q: '> 5 better'"),
        ("q: !e!x y", 1, "a text that begins with ! goes in quotes: q: '!e!x y'"),
        ("%x: 1", 1, "a text that begins with % goes in quotes"),
    ],
)
def test_broken_syntax_is_answered_by_what_to_change(text: str, line: int, message: str) -> None:
    assert refused(text) == (line, message)


def test_a_space_after_the_colon_is_missed_where_a_name_and_its_value_touch() -> None:
    assert space_after_colon("data.corpus:C:x") == "write a space after the colon: data.corpus: C:x"
    assert [space_after_colon(text) for text in ("", "steps: 20", "steps:", "two words:x")] == [None] * 4
