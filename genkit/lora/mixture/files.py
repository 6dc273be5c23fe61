"""Routers in files: the router's weights, and which LoRAs it chooses among."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genkit.errors import ArtifactError, counted
from genkit.lora.files import ROUTER_FORMAT, Lora
from genkit.lora.match import EXPERTS, match
from genkit.lora.mixture.mix import Expert, Mixture, groups_of
from genkit.media.atomic import Files
from genkit.models.check import check_safetensors
from genkit.models.tensors import write_tensors
from genkit.reading import parse_json
from genkit.reading.files import file_digest, place
from genkit.schema import open_keys, read

if TYPE_CHECKING:
    from genkit.lora.mixture.gates import Router

ROUTER = "router.safetensors"
VERSION = "1"


@open_keys
@dataclass(frozen=True)
class Choice:
    """One LoRA of a router's file.

    Args:
        file: path, relative to the router's folder, or (of a checkpoint) to the run's.
        digest: of its content.
        rank: the largest of its layers.
        strength: as in training.
    """

    file: str
    digest: str
    rank: int
    strength: float = 1.0


@open_keys
@dataclass(frozen=True)
class RouterFacts:
    """What a router's file tells: the LoRAs in order, the part of the pipeline, and how it chooses."""

    loras: tuple[Choice, ...]
    component: str = "transformer"
    none: bool = True
    hard: bool = True
    base_model: str | None = None
    steps: int | None = None


def save_router(
    path: str | Path,
    router: Router,
    loras: Sequence[Lora],
    experts: Sequence[Expert],
    home: Path | None = None,
    **facts: Any,
) -> Path:
    """Write a trained router.

    Args:
        path: a file that ends in ``.safetensors``, or a folder for ``router.safetensors`` in it; replaced if there.
        router: the trained gates.
        loras, experts: what it chooses among, in order.
        home: folder from which the LoRA files are named; default: that of the file.
        facts: further fields of :class:`RouterFacts`.

    Returns:
        The file. It appears whole or not at all.
    """
    path = Path(path)
    path = path if path.suffix == ".safetensors" else path / ROUTER
    home = (path.parent if home is None else home).resolve()
    choices = [
        {"file": os.path.relpath(lora.path.resolve(), home), "digest": file_digest(lora.path), "rank": expert.rank,
         "strength": lora.strength}
        for lora, expert in zip(loras, experts, strict=True)
    ]  # fmt: skip
    told = {"loras": choices, "none": router.none, "hard": router.hard, **facts}
    texts = {"format": ROUTER_FORMAT, "version": VERSION, "router": json.dumps(told, sort_keys=True)}
    with Files() as files:
        write_tensors(files.new(path), {name: value for name, value in router.tables.items()}, texts)
    return path


def read_router(path: Path) -> RouterFacts:
    """What a router's file tells; ArtifactError when it is missing, damaged or no router."""
    facts = check_safetensors(path).get("__metadata__") or {}
    if facts.get("format") != ROUTER_FORMAT:
        raise ArtifactError(f"{place(path)} is no router (format {facts.get('format')!r}, expected {ROUTER_FORMAT!r})")
    if facts.get("version") != VERSION:
        raise ArtifactError(f"{place(path)} has format version {facts.get('version')!r}, this genkit reads {VERSION!r}")
    name = f"{place(path)}, router"
    return read(RouterFacts, parse_json(facts.get("router", "{}"), name, finite=True), name, ArtifactError)


def loras_of(path: Path, given: Sequence[Lora] = ()) -> tuple[tuple[Lora, ...], tuple[Lora, ...]]:
    """The LoRAs a router chooses among, and those of the given ones that it does not know.

    Args:
        path: the router's file.
        given: LoRA files named by the user; where one has the content of a LoRA of the router, it is taken for it with
            its own strength. Others are found where they lay in training.

    Raises:
        ArtifactError: a LoRA that is not there or has other content than in training.
    """
    facts = read_router(path)
    free = list(given)
    found = []
    for choice in facts.loras:
        mine = next((lora for lora in free if file_digest(lora.path) == choice.digest), None)
        if mine is not None:
            free.remove(mine)
        else:
            places = [(folder / choice.file).resolve() for folder in (path.parent, path.resolve().parent.parent)]
            file = next((each for each in places if each.is_file()), places[0])
            if not file.is_file() or file_digest(file) != choice.digest:
                why = "has other content than when the router was trained" if file.is_file() else "is not there"
                raise ArtifactError(
                    f"{place(path)} chooses among LoRA files, of which {place(file)} {why}; name the file with --lora"
                )
            mine = Lora(file, choice.strength)
        found.append(mine)
    return tuple(found), tuple(free)


def experts_of(pipeline: Any, loras: Sequence[Lora], component: str) -> list[Expert]:
    """LoRA files as experts of one denoiser of a pipeline.

    Args:
        pipeline: loaded, or its outline (see :attr:`genkit.pipelines.model.Model.lora_outline`).
        loras: files, matched with the pipeline.
        component: the denoiser.

    Raises:
        ArtifactError: a file that does not fit, or that changes other parts too, which no router could choose.
    """
    found = []
    for lora in loras:
        pairs: dict[str, Any] = {}
        for group in match(pipeline, replace(lora, part=lora.part or component), partial=False).groups:
            for (part, module), pair in group.pairs.items():
                if part not in EXPERTS and part != component:
                    raise ArtifactError(
                        f"{place(lora.path)} changes the {part} too; a router chooses token by token and serves LoRAs "
                        f"of the {component} alone"
                    )
                pairs[module] = pair
        if not pairs:
            raise ArtifactError(f"{place(lora.path)} holds nothing for the {component}")
        found.append(Expert(lora.path.name, pairs, lora.strength))
    return found


def apply_router(pipeline: Any, path: Path, loras: Sequence[Lora]) -> Mixture:
    """Put a router and its LoRAs on a pipeline.

    Args:
        pipeline: a loaded Diffusers pipeline.
        path: the router's file.
        loras: what it chooses among, from :func:`loras_of`.

    Returns:
        The mixture in force, with ``remove()``.

    Raises:
        ArtifactError: files that do not fit the pipeline or each other.
    """
    from safetensors.torch import load_file

    from genkit.lora.mixture.gates import Router

    facts = read_router(path)
    model = getattr(pipeline, facts.component, None)
    if model is None:
        raise ArtifactError(f"{place(path)} is for the {facts.component}, which {type(pipeline).__name__} lacks")
    experts = experts_of(pipeline, loras, facts.component)
    router = Router(widths_of(model, experts), len(experts), facts.none, facts.hard)
    stored = load_file(path)
    _compare(path, stored, dict(router.tables.items()))
    for name, value in router.tables.items():
        value.data = stored[name].to(value)
    router.requires_grad_(False)
    return Mixture(model, experts, router)


def widths_of(model: Any, experts: Sequence[Expert]) -> dict[str, int]:
    """Group of layers with the same input -> width of the input."""
    widths: dict[str, int] = {}
    for path, group in groups_of(model, experts).items():
        width = next(expert.pairs[path].down.shape[1] for expert in experts if path in expert.pairs)
        if widths.setdefault(group, width) != width:
            raise ArtifactError(f"layers of {group} have inputs of {widths[group]} and {counted(width, 'channel')}")
    return widths


def _compare(path: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name in (*sorted(set(wanted) - set(stored)), *sorted(set(stored) - set(wanted))):
        verb = "lacks" if name in wanted else "has a place too many:"
        raise ArtifactError(f"{place(path)} does not fit these LoRAs on this model: it {verb} {name}")
    for name, value in wanted.items():
        if stored[name].shape != value.shape:
            raise ArtifactError(
                f"{place(path)} does not fit: {name} is {tuple(stored[name].shape)} in the file, "
                f"{tuple(value.shape)} here"
            )
