"""What `muon schema` sees of a sweep file, as an editor would."""

from jsonschema import Draft202012Validator

from search_spaces.schema import json_schema
from search_spaces.strict_yaml import YamlError, parse

_SCHEMA = Draft202012Validator(json_schema())


def schema_refuses(text: str) -> bool:
    """Whether the schema finds a mistake in the sweep file `text`; one that is no YAML is beyond it."""
    try:
        value = parse(text).value
    except YamlError:
        return False
    return any(_SCHEMA.iter_errors(value))
