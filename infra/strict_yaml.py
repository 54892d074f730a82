"""A small strict YAML: safe types, floats like 1e-3, no duplicate keys, no aliases. Not a schema.

Plain YAML 1.1 reads `1e-3` as text and lets a later key silently replace an earlier one; both
would change a training run without a word.
"""

import re
from collections.abc import Hashable
from typing import Any

import yaml

from m1.infra.errors import UsageError

MAX_BYTES = 1 << 18
MAX_DEPTH = 32  # ours: a preset needs five
_FLOAT = re.compile(
    r"""^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
    |\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+)$""",
    re.VERBOSE,
)


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that knows `1e-3`, and refuses aliases, duplicate keys and deep nesting."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.events.AliasEvent):
            raise self._refusal("aliases are not accepted")
        if self._depth >= MAX_DEPTH:
            raise self._refusal(f"nested deeper than {MAX_DEPTH} levels")
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def _refusal(self, problem: str) -> yaml.constructor.ConstructorError:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        return yaml.constructor.ConstructorError(None, None, problem, mark)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is not text", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


# A resolver table of its own: the class attribute is shared with every other YAML loader.
_StrictLoader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:float"]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def parse_yaml(text: str, *, source: str) -> Any:
    """The value of one YAML document.

    Raises:
        UsageError: not such a document; the message names `source` and the line.
    """
    if len(text.encode("utf-8")) > MAX_BYTES:
        raise UsageError(f"{source} is larger than {MAX_BYTES} bytes")
    try:
        loader = _StrictLoader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{source} is not accepted: {error}") from error


def parse_mapping(text: str, *, source: str) -> dict[str, Any]:
    """The mapping at the top of one YAML document.

    Raises:
        UsageError: the document is something else.
    """
    value = parse_yaml(text, source=source)
    if not isinstance(value, dict):
        raise UsageError(f"{source} must hold settings by name, not {type(value).__name__}")
    return value
