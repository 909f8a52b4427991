"""Strict YAML: the 1.2 core types, line numbers, and everything that is refused."""

import math

import pytest

from search_spaces.strict_yaml import MAX_DEPTH, YamlError, parse


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


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\nb: 2\na: 3", 3, "duplicate key 'a', first given in line 1; keep one of them"),
        ("x:\n  a: 1\n  'a': 1", 3, "duplicate key 'a', first given in line 2; keep one of them"),
        ("a: &anchor 1\nb: *anchor", 2, "aliases (*name) are not read; write the value out"),
        ("1: a", 1, "a key must be text, got 1; put it in quotes"),
        ("true: a", 1, "a key must be text, got true; put it in quotes"),
        ("? [a]\n: b", 1, "a key must be text, got a list or mapping; put it in quotes"),
        (
            "a: !!python/object/apply:os.system [ls]",
            1,
            "tag 'tag:yaml.org,2002:python/object/apply:os.system' is not read; write plain values",
        ),
        ("a:\n  !!float x", 2, "tag 'tag:yaml.org,2002:float' is not read for 'x'; write a plain value"),
        ("\n" + "[" * (MAX_DEPTH + 1), 2, "nested more than 32 levels deep"),
        ("a: " + "9" * 5000, 1, "number 99999999999999999999... has too many digits"),
        ("a: b\n---\nc: d", 2, "not valid YAML: expected a single document in the stream, but found another document"),
        (
            "a:\n\t- b",
            2,
            "not valid YAML: while scanning for the next token, found character '\\t' that cannot start any token",
        ),
        ("a: 1\nb: \x00", 2, "not valid YAML: character #x0000 is not allowed"),
    ],
)
def test_parse_refuses_with_the_line(text: str, line: int, message: str) -> None:
    with pytest.raises(YamlError) as caught:
        parse(text)
    assert (caught.value.line, str(caught.value)) == (line, message)
