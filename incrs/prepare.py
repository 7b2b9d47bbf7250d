"""The door that prepares a log once: `python -m incrs.prepare data=kuairand data.path=...`.

python -m incrs.prepare data=kuairand data.download=true  fetch the public archive, then prepare it

Training does the same when it is needed; this shows what came out before any model is trained.
"""

from __future__ import annotations

from collections import Counter

from omegaconf import DictConfig

from incrs.data.base import Source
from incrs.door import enter, made


def prepare(config: DictConfig) -> None:
    """Prepare the log of `config.data` and print what it holds."""
    source: Source = made(config.data, "data")
    source.prepare()
    schema, roles = source.schema, source.roles
    ids = ", ".join(f"{name} {size - 1}" for name, size in schema.vocabularies.items())
    first, last = source.read(0).name, source.read(len(roles) - 1).name
    print(
        f"{source.name}: {len(roles)} periods, {first} .. {last}, fingerprint {source.fingerprint}"
    )
    print(f"periods: {', '.join(f'{n} {role}' for role, n in Counter(roles).items())}")
    print(f"scenarios: {', '.join(schema.scenarios)}")
    print(f"distinct values: {ids}")
    lists = ", ".join(f"{name} (up to {field.length})" for name, field in schema.lists.items())
    print(f"lists: {lists or 'none'}")
    print(f"numbers: {', '.join(schema.numbers) or 'none'}")


if __name__ == "__main__":
    enter(prepare)
