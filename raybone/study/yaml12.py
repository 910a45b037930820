"""YAML as people and YAML 1.2 read it, where PyYAML reads 1.1: 010 is ten, 1e-3 a number, and 1:30
no number at all.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

MOST_KEYS = (
    1000  # of a mapping with what it merges: a few lines that merge each other double at every line
)
NO_YAML = (yaml.YAMLError, ValueError, TypeError, RecursionError)  # of a loader on hostile text


class Loader(yaml.SafeLoader):
    """SafeLoader of numbers in tens, with an exponent or not, that refuses a key given twice."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """A whole number in tens."""
        return int(str(self.construct_scalar(node)).replace("_", ""))

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys are given once."""
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key in seen:
                raise ValueError(f"line {key_node.start_mark.line + 1}: key {key!r} is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Put what is merged into a mapping."""
        super().flatten_mapping(node)
        if len(node.value) > MOST_KEYS:
            raise ValueError(
                f"line {node.start_mark.line + 1}: a mapping has over {MOST_KEYS} keys"
            )


class Dumper(yaml.SafeDumper):
    """SafeDumper that quotes text which Loader would read as a number."""


for _kind_of in (Loader, Dumper):
    _kind_of.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in many if not tag.endswith((":int", ":float"))]
        for first, many in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _kind_of.add_implicit_resolver(
        "tag:yaml.org,2002:int", re.compile(r"^[-+]?\d[\d_]*$"), list("-+0123456789")
    )
    _kind_of.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(
            r"^[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]?\d+)?|\.\d[\d_]*(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+"
            r"|\.inf|\.Inf|\.INF|[-+]\.inf|\.nan|\.NaN|\.NAN)$"
        ),
        list("-+0123456789."),
    )

Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)


def load_yaml(text: str | bytes) -> Any:
    """Plain values of a text; raises one of ``NO_YAML`` where it is none."""
    return yaml.load(text, Loader=Loader)
