"""A sweep file written from its spec: what a store keeps of a sweep, as one would have written it."""

from __future__ import annotations

import math

import yaml

from search_spaces.spec import SweepSpec
from search_spaces.strict_yaml import IMPLICIT


def as_sweep_yaml(spec: SweepSpec) -> str:
    """A sweep file that loads as `spec`: its fields in the order of the schema, those left out that have their default.

    Texts stay texts for every reader: what YAML 1.1 or 1.2 would take for another type (`off`, `1e-3`) is quoted.
    """
    fields = spec.model_dump(exclude_defaults=True)
    return yaml.dump(
        fields, Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=math.inf
    )


class _Dumper(yaml.SafeDumper):
    """PyYAML's writer, whose own types are those of YAML 1.1, told of those that a sweep file is read by."""

    def ignore_aliases(self, data: object) -> bool:
        """True: a value that stands in two places is written out in both."""
        return True


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """In double quotes where letters cannot be seen: in single ones PyYAML folds some kinds of line breaks."""
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
for _tag, _pattern, _first in IMPLICIT:
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)
