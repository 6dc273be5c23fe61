"""The settings of a method that are tried when nobody names some: from near dense to sparse."""

from __future__ import annotations

from collections.abc import Sequence

from genkit.attention import registry
from genkit.attention.method import Method
from genkit.errors import UsageError, explain
from genkit.pipelines.text import parse_pairs

#: Method -> settings as they are typed.
LADDERS: dict[str, tuple[str, ...]] = {
    "radial": (
        "near=full", "near=decay,decay_factor=1.0", "near=decay,sink=false,decay_factor=0.3",
        "near=decay,sink=false,decay_factor=0.05",
    ),
    "neighborhood": ("size=allx0.75x0.75", "size=allx0.5x0.5", "size=3x0.5x0.5", "size=3x0.33x0.33"),
    "block_select": ("keep=0.5", "keep=0.3", "keep=0.2", "keep=0.1"),
    "broadcast": ("every=2", "every=3", "every=4", "every=6"),
    "mixture_of_block": ("keep=0.5", "keep=0.3", "keep=0.2", "keep=0.1"),
}  # fmt: skip


def settings_to_try(method: str, given: Sequence[str], always: str | None = None) -> list[Method]:
    """The methods that a tuning chooses among.

    Args:
        method: its name. given: settings of each (``keep=0.2``); none = the method's ladder. always: settings of all.

    Raises:
        UsageError: an unknown method or setting, the same settings twice, or none given for a method without a ladder.
    """
    registry.method_class(method)
    common = parse_pairs(always, "--method-args") if always else {}
    texts = list(given) or list(LADDERS.get(method, ()))
    if not texts:
        raise UsageError(
            f"no settings of {method} are known to try; give some with --try (`genkit methods` lists what it takes; "
            f"known for {', '.join(LADDERS)})"
        )
    found = [registry.build(method, {**common, **parse_pairs(text, "--try")}) for text in texts]
    if len(set(found)) < len(found):
        raise UsageError(explain("--try", texts, "settings that differ from each other"))
    return found


def short_names(methods: Sequence[Method]) -> list[str]:
    """What tells settings of one method from each other: ``keep=0.2``; of a single one its whole description."""
    every = [method.settings() for method in methods]
    differ = [name for name in every[0] if any(one[name] != every[0][name] for one in every)]
    if not differ:
        return [method.describe() for method in methods]
    return [", ".join(f"{name}={one[name]}" for name in differ) for one in every]
