"""Do the weights of a model folder belong to its configurations? Told from names and shapes, before weights are read.

Diffusers and Transformers load what fits and only warn: a configuration with fewer layers runs another model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from genkit.errors import ArtifactError, counted, escaped, said, shortened
from genkit.models.check import Tensor, check_safetensors, parts_of, read_index, read_part_config
from genkit.reading.files import place

_NUMBER = re.compile(r"\.(\d+)\.")
_LARGEST = 10_000  # layers and channels that a configuration may ask for, times ten; a slip, not a model, asks for more


def check_fits(folder: Path) -> None:
    """Compare every part's weights with the model that its configuration describes, built without values.

    Raises:
        ArtifactError: a configuration that its class refuses, weights that are missing, left over or of another shape.
            The message names the first of them.
    """
    stamps = tuple(
        (str(path), path.stat().st_mtime_ns, path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".json", ".safetensors") and path.is_file()
    )
    _check(folder, stamps)


@cache
def _check(folder: Path, stamps: tuple[tuple[str, int, int], ...]) -> None:
    import diffusers

    index = read_index(folder)
    for part, class_name in parts_of(index).items():
        stored = _stored(folder / part)
        if not stored:
            continue
        library = index[part][0]
        if library == "diffusers" and hasattr(diffusers, class_name):
            _check_exactly(folder, part, getattr(diffusers, class_name), stored)
        elif library == "transformers":
            _check_layers(folder, part, class_name, stored)


def _stored(home: Path) -> dict[str, Tensor]:
    """Names and places of a part's weights; one set, where a part has several precisions."""
    files = sorted(home.glob("*.safetensors"))
    plain = [file for file in files if not re.search(r"\.(fp16|bf16|fp8|ema|non_ema)[.-]", file.name)]
    found: dict[str, Tensor] = {}
    for file in plain or files:
        found |= {name: tensor for name, tensor in check_safetensors(file).items() if name != "__metadata__"}
    return found


def _empty(folder: Path, part: str, build: Any, class_name: str) -> Any:
    """A model without values; ArtifactError when its configuration makes none."""
    import warnings

    from accelerate import init_empty_weights

    try:
        with init_empty_weights(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return build()
    except Exception as error:  # whatever a class says about values that it was not made for
        raise ArtifactError(f"{place(folder / part / 'config.json')} makes no {class_name}: {said(error)}") from error


def _check_exactly(folder: Path, part: str, kind: Any, stored: dict[str, Tensor]) -> None:
    """Names and shapes must be the same; Diffusers' own renaming of older files is followed."""
    if not hasattr(kind, "from_config"):
        return
    config = read_part_config(folder, part)
    check_numbers(folder / part / "config.json", config)
    model = _empty(folder, part, lambda: kind.from_config(config), kind.__name__)
    found = dict(stored)
    if hasattr(model, "_fix_state_dict_keys_on_load"):
        model._fix_state_dict_keys_on_load(found)
    ignored = [re.compile(pattern) for pattern in kind._keys_to_ignore_on_load_unexpected or ()]
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    extra = [name for name in found if name not in wanted and not any(each.search(name) for each in ignored)]
    missing = [name for name in wanted if name not in found]
    _refuse(folder / part, kind.__name__, missing, extra)
    for name, shape in wanted.items():
        if tuple(found[name].shape) != shape:
            raise ArtifactError(
                f"{place(folder / part)}: {name} is {list(found[name].shape)} in the weights and {list(shape)} by "
                f"config.json ({kind.__name__}); they do not belong together"
            )


def check_numbers(path: Path, config: dict[str, Any]) -> None:
    """Refuse layers and sizes out of all proportion, which would take long to build even without values."""
    for name, value in config.items():
        for number in value if isinstance(value, list) else [value]:
            counts = isinstance(number, int) and name.startswith(("num_", "n_", "layers", "depth"))
            if counts and "train" not in name and not -1 <= number <= _LARGEST:
                raise ArtifactError(f"{place(path)}: {name} is {shortened(repr(number), 60)}, allowed: 0 to {_LARGEST}")


def _check_layers(folder: Path, part: str, class_name: str, stored: dict[str, Tensor]) -> None:
    """Layers must have the same numbers. Names of Transformers' models change between versions and are translated on
    loading, so only the numbers in them are compared, for names that end alike."""
    import transformers

    kind = getattr(transformers, class_name, None)
    if kind is None or not hasattr(kind, "config_class"):
        return
    config = read_part_config(folder, part)
    check_numbers(folder / part / "config.json", config)
    made = _empty(folder, part, lambda: kind(kind.config_class.from_dict(config)), class_name)
    wanted, found = _numbers(dict(made.named_parameters())), _numbers(stored)
    for ending in sorted(wanted.keys() & found.keys()):
        extra, missing = found[ending] - wanted[ending], wanted[ending] - found[ending]
        _refuse(
            folder / part, class_name, [f"layer {each}{ending}" for each in sorted(missing)],
            [f"layer {each}{ending}" for each in sorted(extra)],
        )  # fmt: skip


def _numbers(names: Iterable[str]) -> dict[str, set[int]]:
    """The first number in each name, by what follows it."""
    found: dict[str, set[int]] = {}
    for name in names:
        number = _NUMBER.search(name)
        if number is not None:
            found.setdefault(f".{name[number.end() :]}", set()).add(int(number.group(1)))
    return found


def _refuse(home: Path, class_name: str, missing: list[str], extra: list[str]) -> None:
    if not missing and not extra:
        return
    parts = [f"have nothing for {counted(len(missing), 'tensor')} of it, the first is {missing[0]}"] if missing else []
    parts += (
        [f"have {counted(len(extra), 'tensor')} that it has no place for, the first is {extra[0]}"] if extra else []
    )
    raise ArtifactError(
        f"{place(home)} holds the weights of another model than config.json describes ({class_name}): they "
        f"{' and '.join(escaped(each) for each in parts)}; get the folder again"
    )
