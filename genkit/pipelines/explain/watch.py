"""One forward without numbers: which modules attend, how many tokens ask how many, and what they can only be."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from genkit.errors import UsageError, counted, explain, said
from genkit.patching.bypass import early_name
from genkit.patching.interception import INTERCEPTION, Call, RunningModule, calling_frame, own_attention, pop, push
from genkit.pipelines.explain.inputs import BATCH, TEXT, Guess, guesses, parameters, unknown

_TRIPLES = (
    ("to_q", "to_k", "to_v"), ("to_query", "to_key", "to_value"), ("q_proj", "k_proj", "v_proj"), ("q", "k", "v"),
    ("query", "key", "value"), ("wq", "wk", "wv"), ("q_linear", "k_linear", "v_linear"),
)  # fmt: skip
_HEADS = ("heads", "num_heads", "n_heads", "num_attention_heads", "nheads")
_MOST = 240  # guesses tried: each costs a forward on the meta device, most of them only its first layer


@dataclass(frozen=True)
class Attended:
    """Attention calls of modules whose paths differ in numbers only.

    Args:
        pattern: regular expression for their whole paths.
        kind: class of the modules.
        modules: how many there are.
        heads: query heads; heads_attribute: the attribute that tells them, or "".
        projections: attributes of the layers to queries, keys and values; empty when none go by known names.
        calls: (queries, keys, rows of the batch) of a module's calls, from the forward.
        role: what the calls can only be, or "" where sizes do not tell.
        why: the same in words.
    """

    pattern: str
    kind: str
    modules: int
    heads: int
    heads_attribute: str
    projections: tuple[str, ...]
    calls: tuple[tuple[int, int, int], ...]
    role: str
    why: str


@dataclass(frozen=True)
class Explanation:
    """What was found of a model.

    Args:
        name: its class.
        config: its configuration.
        guess: the arguments the forward ran with, or None when it did not run.
        grid: tokens (T, H, W) of the latents, or None when the calls do not tell.
        patch: latents behind a token, (T, H, W).
        text_first: whether text comes before the grid where both attend together; None = neither was seen.
        groups: the modules that attended.
        likely: patterns of modules that look like attention: the same without a forward.
        missing: what could not be found, with the reason.
    """

    name: str
    config: dict[str, Any]
    guess: Guess | None
    grid: tuple[int, int, int] | None = None
    patch: tuple[int, int, int] = (1, 1, 1)
    text_first: bool | None = None
    groups: tuple[Attended, ...] = ()
    likely: tuple[str, ...] = ()
    missing: tuple[str, ...] = field(default=())


class _Seen:
    """Takes the attention calls of one module and notes their sizes."""

    def __init__(self, path: str, module: Any, calls: list[tuple[str, int, int, int, int]]):
        self.path, self.module, self.calls = path, module, calls

    def enter(self, module: Any, args: Any) -> None:
        push(RunningModule(self, calling_frame()))

    def leave(self, module: Any, args: Any, output: Any) -> None:
        pop(self)

    def attend(self, running: RunningModule, q: Any, k: Any, v: Any, call: Call) -> torch.Tensor:
        self.calls.append((self.path, q.shape[1], k.shape[1], q.shape[0], q.shape[2]))
        with own_attention():
            return call.own(q, k, v)


class _Joins(TorchFunctionMode):
    """Notes in which order tokens of text and of the grid are put together: (sizes along the joined axis)."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, ...]] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in (torch.cat, torch.concat, torch.concatenate):
            tensors = args[0] if args else kwargs["tensors"]
            axis = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0))
            if len(tensors) > 1 and all(each.ndim == tensors[0].ndim for each in tensors):
                self.sizes.append(tuple(each.shape[axis] for each in tensors))
        return function(*args, **kwargs)


@contextmanager
def _watched(model: Any) -> Iterator[list[tuple[str, int, int, int, int]]]:
    """Every module of a model as a possible owner of attention calls: the innermost that runs has them."""
    calls: list[tuple[str, int, int, int, int]] = []
    hooks = []
    for path, module in model.named_modules():
        seen = _Seen(path, module, calls)
        hooks.append(module.register_forward_pre_hook(seen.enter))
        hooks.append(module.register_forward_hook(seen.leave, always_call=True))
    INTERCEPTION.hold()
    try:
        yield calls
    finally:
        INTERCEPTION.release()
        for hook in hooks:
            hook.remove()


def explain_model(model: Any, given: Mapping[str, torch.Tensor] | None = None) -> Explanation:
    """Find the attention of a model on the meta device. Runs forwards without numbers: seconds for a large model.

    Args:
        model: a module with ``config`` whose parameters are on the meta device, see :func:`models_in`.
        given: forward arguments that cannot be guessed, tensors on the meta device.
    """
    given = dict(given or {})
    name, config, likely = type(model).__name__, dict(model.config), _likely(model)
    foreign = [key for key in given if key not in parameters(model)]
    if foreign:
        raise UsageError(explain(f"arguments of {name}", foreign[0], list(parameters(model))))
    without = [key for key in unknown(model) if key not in given]
    if without:
        reason = f"no forward was run: nothing is known about what {', '.join(without)} should be; say it with --input"
        return Explanation(name, config, None, likely=likely, missing=(reason,))
    furthest: tuple[int, str] = (-1, "its forward has no argument that could be the latents")
    for number, guess in enumerate(guesses(model, given)):
        if number == _MOST:
            break
        joins = _Joins()
        with _watched(model) as calls, torch.no_grad(), joins:
            try:
                model(**guess.args)
            except Exception as error:  # a wrong guess; how far it came is told at the end
                furthest = max(furthest, (len(calls), _told(error)), key=lambda each: each[0])
                continue
        return _read(model, guess, calls, joins.sizes, likely)
    reason = (
        "no forward ran through; the one that came furthest made "
        f"{counted(max(furthest[0], 0), 'attention call')}: {furthest[1]}"
    )
    return Explanation(name, config, None, likely=likely, missing=(reason,))


def _told(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {said(error)} ({last.name}: {last.line})"


def _likely(model: Any) -> tuple[str, ...]:
    """Patterns of the modules that look like attention."""
    found = []
    for path, module in model.named_modules():
        if path and (_projections(module) or (hasattr(module, "processor") and hasattr(module, "heads"))):
            found.append(_pattern(path))
    return tuple(dict.fromkeys(found))


def _pattern(path: str) -> str:
    return re.sub(r"(?<=\\\.)\d+|^\d+", r"\\d+", re.escape(path))


def _projections(module: Any) -> tuple[str, ...]:
    for names in _TRIPLES:
        if all(hasattr(getattr(module, name, None), "weight") for name in names):
            return names
    return ()


def _read(model: Any, guess: Guess, calls: list[Any], joins: list[tuple[int, ...]], likely: Any) -> Explanation:
    grid, patch = _grid(model, guess, calls)
    missing = [] if grid else ["no call has as many tokens as the latents have places or patches"]
    if not calls:
        sdpa = torch.nn.functional.scaled_dot_product_attention
        early = next(filter(None, (early_name(sdpa, module) for module in model.modules())), None)
        missing = [
            early
            or "the forward ran, but made no attention call that goes through Diffusers' backends or "
            "torch.nn.functional.scaled_dot_product_attention; such attention cannot be patched"
        ]
    order = None
    if grid:
        size = grid[0] * grid[1] * grid[2]
        order = next((sizes[0] == TEXT for sizes in joins if {TEXT, size} <= set(sizes)), None)
    groups = _groups(model, guess, calls, grid)
    unclear = [group.pattern for group in groups if not group.role]
    if grid and unclear:
        missing.append(f"the tokens of {', '.join(unclear)}: see how its queries and keys are made")
    return Explanation(
        type(model).__name__, dict(model.config), guess, grid, patch, order, groups, likely, tuple(missing)
    )


def _grid(model: Any, guess: Guess, calls: list[Any]) -> tuple[tuple[int, int, int] | None, tuple[int, int, int]]:
    """The token grid whose size some call has, alone or with the text, and the latents behind a token."""
    counts = {count for _, asking, keys, _, _ in calls for count in (asking, keys)}
    t, h, w = guess.sizes if "T" in guess.axes or guess.axes == "BNC" else (1, *guess.sizes[1:])
    if guess.axes == "BNC" and "img_ids" in guess.args:
        t = 1
    for deep, wide in _patches(dict(model.config)):
        grid = t // deep, h // wide, w // wide
        size = grid[0] * grid[1] * grid[2]
        folded = {size} if grid[0] == 1 else {size, grid[1] * grid[2]}
        if size and any(count - more in folded for count in counts for more in (0, TEXT)):
            return grid, (deep, wide, wide)
    return None, (1, 1, 1)


def _patches(config: dict[str, Any]) -> list[tuple[int, int]]:
    """(frames, rows) behind a token, the configuration's first."""
    size, deep = config.get("patch_size"), config.get("patch_size_t") or config.get("patch_size_temporal")
    first = []
    if isinstance(size, (list, tuple)) and size and all(isinstance(each, int) for each in size):
        first = [(size[0] if len(size) == 3 else 1, size[-1])]
    elif isinstance(size, int):
        first = [(deep or 1, size)]
    return [*first, *((deep, wide) for wide in (1, 2, 4, 8, 16) for deep in (1, 2, 4) if (deep, wide) not in first)]


def _groups(model: Any, guess: Guess, calls: list[Any], grid: Any) -> tuple[Attended, ...]:
    by_pattern: dict[str, dict[str, list[Any]]] = {}
    for path, *rest in calls:
        by_pattern.setdefault(_pattern(path), {}).setdefault(path, []).append(rest)
    modules = dict(model.named_modules())
    found = []
    for pattern, members in by_pattern.items():
        path, made = next(iter(members.items()))
        module, heads = modules[path], made[0][3]
        attribute = next((name for name in _HEADS if getattr(module, name, None) == heads), "")
        shapes = tuple(
            dict.fromkeys((asking, keys, rows) for each in members.values() for asking, keys, rows, _ in each)
        )
        role, why = _role(shapes, grid)
        found.append(
            Attended(
                pattern, type(module).__name__, len(members), heads, attribute, _projections(module), shapes, role, why
            )
        )
    return tuple(found)


def _role(shapes: tuple[tuple[int, int, int], ...], grid: Any) -> tuple[str, str]:
    """What the calls of a module can only be."""
    if grid is None:
        return "", "; ".join(f"{counted(asking, 'token asks', 'tokens ask')} {keys}" for asking, keys, _ in shapes)
    t, h, w = grid
    kinds = {
        (t * h * w, t * h * w, BATCH): ("self", "the grid among itself"),
        (t * h * w + TEXT, t * h * w + TEXT, BATCH): ("joint", "grid and text together"),
        (t * h * w, TEXT, BATCH): ("cross", "the grid asks the text"),
        (t * h * w, t * h * w + TEXT, BATCH): ("joint", "the grid asks grid and text"),
        (TEXT, TEXT, BATCH): ("", "the text among itself"),
    }
    if t > 1:
        kinds[h * w, h * w, BATCH * t] = ("spatial", "every frame among itself")
        kinds[t, t, BATCH * h * w] = ("temporal", "every place along the frames")
        kinds[h * w, TEXT, BATCH * t] = ("cross", "every frame asks the text")
    named = [kinds.get(shape, ("", "{} tokens ask {}, {} rows".format(*shape))) for shape in shapes]
    roles = list(dict.fromkeys(role for role, _ in named if role))
    return roles[0] if len(roles) == 1 else "", "; ".join(dict.fromkeys(why for _, why in named))
