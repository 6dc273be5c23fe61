"""Names of other programs to Diffusers' and back, by the records of :mod:`genkit.families.originals`.

Where the authors of a model have one matrix for queries, keys and values, a LoRA is cut or joined without changing what
it adds: cut, each piece has its rows of B and all of A; joined, A is stacked and B is block-diagonal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from genkit.errors import UnsupportedError, counted
from genkit.families.originals.base import Layer, Originals, same
from genkit.lora.keys import DOWN, KEY, short
from genkit.lora.pair import Pair

if TYPE_CHECKING:
    import torch

DIFFUSERS, COMFYUI, KOHYA, DIFFSYNTH = "diffusers", "comfyui", "kohya", "diffsynth"
FORMS = (DIFFUSERS, COMFYUI, KOHYA, DIFFSYNTH)
_LAYER = "text_model.encoder.layers.{}"
#: The text encoders of CLIP, as transformers calls their layers.
_CLIP = Originals(
    "CLIP",
    "text_encoder",
    same(
        *(f"{_LAYER}.self_attn.{name}_proj" for name in ("q", "k", "v", "out")),
        f"{_LAYER}.mlp.fc1",
        f"{_LAYER}.mlp.fc2",
        "text_projection",
    ),
)
_TEXT = {
    "lora_te_": "text_encoder", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2",
    "text_encoders.clip_l.transformer.": "text_encoder", "text_encoders.clip_g.transformer.": "text_encoder_2",
    "text_encoder.": "text_encoder", "text_encoder_2.": "text_encoder_2",
}  # fmt: skip
_FLAT = ("lora_unet_", "lora_transformer_")
_DOTTED = ("diffusion_model.", "transformer.", "transformer_2.", "unet.", "")

#: Part -> layer with underscores for dots -> layer: the names of a model at hand.
FlatNames = Mapping[str, Mapping[str, str]]


class Place(NamedTuple):
    """Where a name leads: a layer of the authors, or (``piece``) one of Diffusers' that stand for it."""

    part: str
    layer: Layer
    numbers: tuple[str, ...]
    piece: int | None

    @property
    def modules(self) -> tuple[str, ...]:
        """Diffusers' names."""
        names = tuple(name.format(*self.numbers) for name in self.layer.ours)
        return names if self.piece is None else (names[self.piece],)


def flat_names(pipeline: object, parts: Iterable[str]) -> dict[str, dict[str, str]]:
    """The layers of a pipeline's parts by their names with underscores for dots."""
    return {
        part: {name.replace(".", "_"): name for name, _ in getattr(pipeline, part).named_modules() if name}
        for part in parts
    }


def find(name: str, record: Originals | None, flat: FlatNames | None = None) -> Place | None:
    """Where a module's name leads; None for an unknown one.

    Args:
        name: as a file has it, with its prefix.
        record: names of the model's family.
        flat: names of the model itself, see :func:`flat_names`, where there is one.
    """
    for prefix, part in _TEXT.items():
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            return _ours(_CLIP.of_ours(rest) or _CLIP.of_ours_flat(rest), part) or _at_hand(rest, part, flat)
    for prefix in _FLAT:
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            found = record and (
                _theirs(record.of_flat(rest), record.part) or _ours(record.of_ours_flat(rest), record.part)
            )
            parts = [part for part in flat or () if not part.startswith("text_encoder")]
            at_hand = (_at_hand(rest, part, flat) for part in parts)
            return found or next((place for place in at_hand if place), None)
    if record is None:
        return None
    prefix = next(prefix for prefix in _DOTTED if name.startswith(prefix))
    rest, part = name.removeprefix(prefix), "transformer_2" if prefix == "transformer_2." else record.part
    return _theirs(record.of_original(rest), part) or _ours(record.of_ours(rest), part)


def _theirs(found: tuple[Layer, tuple[str, ...]] | None, part: str) -> Place | None:
    return None if found is None else Place(part, found[0], found[1], None)


def _ours(found: tuple[Layer, int, tuple[str, ...]] | None, part: str) -> Place | None:
    return None if found is None else Place(part, found[0], found[2], found[1])


def _at_hand(rest: str, part: str, flat: FlatNames | None) -> Place | None:
    name = (flat or {}).get(part, {}).get(rest)
    return None if name is None else Place(part, same(name)[0], (), 0)


class Translated(NamedTuple):
    """Tensors under Diffusers' names, alphas among them, and the modules whose names are unknown."""

    tensors: dict[str, torch.Tensor]
    unknown: list[str]


def to_diffusers(
    plain: Mapping[str, torch.Tensor], record: Originals | None, flat: FlatNames | None = None
) -> Translated:
    """The tensors of a file under Diffusers' names: ``part.module.lora_A.weight``, ``lora_B.weight``, ``lora_B.bias``
    and ``part.module.alpha``.

    Args:
        plain: names as :func:`genkit.lora.keys.simplified` leaves them; keys that are no part of a LoRA stay.
        record, flat: as for :func:`find`.
    """
    tensors: dict[str, torch.Tensor] = {}
    sources: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in plain.items():
        module, field = _taken_apart(key)
        if field is None:
            tensors[key] = value
        else:
            sources.setdefault(module, {})[field] = value
    unknown = []
    for module, fields in sources.items():
        place = find(module, record, flat)
        if place is None:
            unknown.append(module)
            continue
        for name, own in zip(place.modules, _pieces(place, fields), strict=True):
            for field, value in own.items():
                tensors[f"{place.part}.{name}.{_FIELDS[field]}"] = value
    return Translated(tensors, unknown)


_FIELDS = {"down": "lora_A.weight", "up": "lora_B.weight", "bias": "lora_B.bias", "alpha": "alpha"}


def _taken_apart(key: str) -> tuple[str, str | None]:
    """Module and field of a key; no field for what is none of a LoRA's."""
    for ending, field in ((".alpha", "alpha"), (".diff_b", "bias")):
        if key.endswith(ending):
            return key.removesuffix(ending), field
    found = KEY.fullmatch(key)
    if found is None:
        return key, None
    if found["kind"] == "bias":
        return found["module"], "bias"
    return found["module"], "down" if found["half"] in DOWN else "up"


def _pieces(place: Place, fields: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """The fields of each of Diffusers' layers. A bias of other programs is not scaled by alpha, ours is."""
    fields = dict(fields)
    alpha, down = fields.get("alpha"), fields.get("down")
    if "bias" in fields and alpha is not None and down is not None and alpha.numel() == 1:
        fields["bias"] = fields["bias"] * (down.shape[0] / float(alpha))
    if place.piece is not None or not {"down", "up"} <= set(fields):
        return [fields, *({} for _ in place.modules[1:])]
    rows: dict[str, torch.Tensor] = {field: fields[field] for field in ("up", "bias") if field in fields}
    if place.layer.swapped:
        rows = {field: _swapped(value) for field, value in rows.items()}
    if len(place.modules) == 1:
        return [fields | rows]
    return _cut(place.layer, fields, rows)


def _cut(layer: Layer, fields: dict[str, torch.Tensor], rows: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """One joint pair as a pair for every piece. Of the rank each keeps what its rows use, so that what was joined comes
    apart as it was."""
    total = fields["up"].shape[0]
    unit, rest = divmod(total, sum(layer.sizes))
    if rest:
        raise UnsupportedError(
            f"{layer.original}: {counted(total, 'row does', 'rows do')} not divide into {len(layer.sizes)} pieces"
        )
    counts = [unit * size for size in layer.sizes]
    alpha = fields.get("alpha")
    found, start = [], 0
    for count in counts:
        own = {field: value[start : start + count] for field, value in rows.items()}
        used = own["up"].flatten(1).ne(0).any(0)
        kept = used.nonzero().flatten() if used.any() else used.new_zeros(1).long()
        own["up"] = own["up"][:, kept].contiguous()
        own["down"] = fields["down"][kept].contiguous()
        if alpha is not None:
            own["alpha"] = alpha * (len(kept) / fields["down"].shape[0])
        found.append(own)
        start += count
    if any(bool(own["up"].any()) for own in found):
        return [own if bool(own["up"].any()) or "bias" in own else {} for own in found]
    return found


def _swapped(value: torch.Tensor) -> torch.Tensor:
    return value.roll(value.shape[0] // 2, 0)


def from_diffusers(
    pairs: Mapping[tuple[str, str], Pair], form: str, record: Originals, two_texts: bool = False
) -> dict[str, torch.Tensor]:
    """The tensors of a file in another program's form.

    Args:
        pairs: by (part, module), scales multiplied in.
        form: :data:`COMFYUI`, :data:`KOHYA` or :data:`DIFFSYNTH`.
        record: names of the model's family.
        two_texts: the model has more than one text encoder, whose first Kohya calls ``lora_te1``.

    Raises:
        UnsupportedError: a layer that has no name there, or DoRA.
    """
    joint: dict[tuple[str, str], dict[int, Pair]] = {}
    layers: dict[tuple[str, str], Layer] = {}
    for (part, module), pair in pairs.items():
        if pair.magnitude is not None:
            raise UnsupportedError(
                f"{short(f'{part}.{module}')} is DoRA, for which {form} has no form that all readers share"
            )
        layer, piece, name = _written(part, module, form, record, two_texts)
        joint.setdefault((part, name), {})[piece] = pair
        layers[part, name] = layer
    found: dict[str, torch.Tensor] = {}
    for (part, name), pieces in joint.items():
        found |= _fields(name, _joined(layers[part, name], pieces), form)
    return found


def _written(part: str, module: str, form: str, record: Originals, two_texts: bool) -> tuple[Layer, int, str]:
    """The layer, which piece of it, and the name with its prefix."""
    if part.startswith("text_encoder"):
        if form == DIFFSYNTH:
            raise UnsupportedError(f"{part}: {form} has no names for text encoders")
        full = module if module.startswith(("text_model.", "text_projection")) else f"text_model.{module}"
        if form == COMFYUI:
            return same(full)[0], 0, f"text_encoders.clip_{'g' if part.endswith('_2') else 'l'}.transformer.{full}"
        number = part[-1] if part[-1].isdigit() else "1" if two_texts else ""
        return same(full)[0], 0, f"lora_te{number}_{full.replace('.', '_')}"
    found = record.of_ours(module)
    if found is None or part != record.part:
        raise UnsupportedError(f"{short(f'{part}.{module}')} has no name in {form} files of {record.family}")
    layer, piece, numbers = found
    if form == KOHYA and record.kohya_ours:
        return same(module)[0], 0, f"lora_unet_{module.replace('.', '_')}"
    if sum(each.ours == layer.ours for each in record.layers) > 1:
        raise UnsupportedError(f"{short(module)} has several names in {form} files, by the size of the model")
    name = layer.original.format(*numbers)
    if form == KOHYA:
        return layer, piece, f"lora_unet_{name.replace('.', '_')}"
    return layer, piece, f"diffusion_model.{name}" if form == COMFYUI else name


def _joined(layer: Layer, pieces: Mapping[int, Pair]) -> Pair:
    """One pair for all pieces of the authors' layer; pieces without LoRA have rows of zeros."""
    import torch

    if len(layer.ours) == 1:
        (pair,) = pieces.values()
        if not layer.swapped:
            return pair
        bias = None if pair.bias is None else _swapped(pair.bias)
        return Pair(down=pair.down, up=_swapped(pair.up), bias=bias)
    first = next(iter(pieces))
    unit = pieces[first].up.shape[0] // layer.sizes[first]
    rank = sum(pair.rank for pair in pieces.values())
    total = unit * sum(layer.sizes)
    ups, starts = pieces[first].up, [unit * sum(layer.sizes[:place]) for place in range(len(layer.ours))]
    up = ups.new_zeros((total, rank, *ups.shape[2:]))
    bias = ups.new_zeros(total) if any(pair.bias is not None for pair in pieces.values()) else None
    column = 0
    for place in sorted(pieces):
        pair, start = pieces[place], starts[place]
        if pair.up.shape[0] != unit * layer.sizes[place] or pair.down.shape[1:] != pieces[first].down.shape[1:]:
            raise UnsupportedError(
                f"{layer.original}: the sizes of {', '.join(layer.ours)} do not fit together as {layer.sizes}"
            )
        up[start : start + pair.up.shape[0], column : column + pair.rank] = pair.up
        if pair.bias is not None and bias is not None:
            bias[start : start + pair.up.shape[0]] = pair.bias
        column += pair.rank
    return Pair(down=torch.cat([pieces[place].down for place in sorted(pieces)]), up=up, bias=bias)


def _fields(name: str, pair: Pair, form: str) -> dict[str, torch.Tensor]:
    import torch

    halves = {COMFYUI: ("lora_A.weight", "lora_B.weight"), KOHYA: ("lora_down.weight", "lora_up.weight")}
    down, up = halves.get(form, ("lora_A.default.weight", "lora_B.default.weight"))
    found = {f"{name}.{down}": pair.down, f"{name}.{up}": pair.up}
    if form == KOHYA:
        found[f"{name}.alpha"] = torch.tensor(float(pair.rank))
    if pair.bias is not None:
        found[f"{name}.diff_b"] = pair.bias
    return found


def form_of(names: Sequence[str]) -> str:
    """What a file's names tell of the program that wrote it, in words."""
    if any(name.startswith(("lora_unet_", "lora_te")) for name in names):
        return "Kohya"
    if any(name.startswith("lora_transformer_") for name in names):
        return "OneTrainer"
    if any(name.startswith(("diffusion_model.", "text_encoders.")) for name in names):
        return "ComfyUI"
    if any(name.startswith("base_model.model.") for name in names):
        return "PEFT"
    parts = ("transformer.", "transformer_2.", "unet.", "prior.", "text_encoder", "connectors.")
    if any(name.startswith(parts) for name in names):
        old = any("_lora." in name or ".lora." in name or "lora_linear" in name for name in names)
        return "Diffusers, old" if old else "Diffusers"
    return "DiffSynth" if any(".default." in name for name in names) else "without prefix"
