"""What run.json keeps of a configuration: its digest, and none of its secrets."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from incrs.labels import ELSEWHERE

SECRET = re.compile(r"api_?key|token|secret|password", re.IGNORECASE)


def essence(node: Any) -> Any:
    """Return a configuration without what says where and how it is computed."""
    if isinstance(node, Mapping):
        return {k: essence(v) for k, v in node.items() if k not in ELSEWHERE}
    return node


def digest(config: Mapping[Any, Any]) -> str:
    """Return 8 hexadecimal digits that name what a configuration computes, seed aside."""
    text = json.dumps(essence(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def without_secrets(node: Any) -> Any:
    """Return a configuration with the values of keys, tokens and passwords masked."""
    if isinstance(node, Mapping):
        return {
            k: "***" if SECRET.search(str(k)) and isinstance(v, str) else without_secrets(v)
            for k, v in node.items()
        }
    return [without_secrets(item) for item in node] if isinstance(node, list) else node


def without_secret(override: str) -> str:
    """Return `key=value` with the value masked where the key is that of a secret."""
    key, equals, _ = override.partition("=")
    return f"{key}=***" if equals and SECRET.search(key) else override
