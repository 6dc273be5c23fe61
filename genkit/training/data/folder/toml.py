"""Data sets as musubi-tuner and sd-scripts list them: ``[general]``, ``[[datasets]]`` and ``[[datasets.subsets]]``."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genkit.errors import UsageError, explain, shown
from genkit.reading import read_toml, user_path
from genkit.reading.files import place
from genkit.schema import read
from genkit.training.data.source import DataSource

GENERAL, DATASETS, SUBSETS = "general", "datasets", "subsets"
#: Keys that name the folder or list of a data set.
_PATHS = (
    "image_directory", "video_directory", "image_jsonl_file", "video_jsonl_file", "image_dir", "video_dir",
    "metadata_file",
)  # fmt: skip
#: Keys that are taken over -> type of their value.
_TAKEN: dict[str, Any] = {
    **dict.fromkeys(_PATHS, str),
    "resolution": int | list[int],
    "caption_extension": str,
    "num_repeats": int,
    "class_tokens": str,
    "caption_dropout_rate": float,
    "enable_bucket": bool,
    "bucket_no_upscale": bool,
    "target_frames": list[int],
    "frame_extraction": str,
    "frame_stride": int,
    "frame_sample": int,
    "max_frames": int,
    "control_directory": str,
}
#: Keys that are the run's or follow from the files -> what is done here.
_ELSEWHERE = {
    "batch_size": "set train_batch_size of the run",
    "cache_directory": "set cache_dir of the run",
    "source_fps": "clips are brought to the model's frames per second by the time stamps in them",
    "skip_cache_check": "entries are found by content, so they need no check",
    "validation_split": "set held_out of the run",
    "validation_seed": "files are held out by their content, without a seed",
}
#: Keys without a counterpart: told unless they say what is done anyway.
_WITHOUT = (
    "shuffle_caption", "keep_tokens", "keep_tokens_separator", "secondary_separator", "enable_wildcard",
    "caption_prefix", "caption_suffix", "caption_separator", "caption_dropout_every_n_epochs",
    "caption_tag_dropout_rate", "token_warmup_min", "token_warmup_step", "color_aug", "flip_aug",
    "face_crop_aug_range", "random_crop", "alpha_mask", "conditioning_data_dir", "cache_info", "custom_attributes",
    "network_multiplier", "bucket_reso_steps", "max_bucket_reso", "min_bucket_reso", "skip_image_resolution",
    "resize_interpolation", "prior_loss_weight", "multiple_target", "control_resolution", "no_resize_control",
    "fp_latent_window_size", "fp_1f_clean_indices", "fp_1f_target_index", "fp_1f_no_post",
    "flux_kontext_no_resize_control", "qwen_image_edit_no_resize_control", "qwen_image_edit_control_resolution",
    "num_timestep_buckets", "debug_dataset",
)  # fmt: skip
#: Frames between two cuts of "slide", frames of "full" and frames of a clip where musubi-tuner's files do not say them.
_STRIDE, _FULL, _FRAMES = 10, 129, [1]


def read_dataset_toml(path: str | Path) -> tuple[tuple[DataSource, ...], tuple[str, ...]]:
    """The data sets of a TOML file of musubi-tuner or sd-scripts.

    Resolution, buckets, repeats, captions and frame extraction are taken over with the meaning and the defaults they
    have there: without ``enable_bucket`` all samples are cut to one size, without ``bucket_no_upscale`` small files are
    enlarged. Relative paths begin in the working folder, as there.

    Args:
        path: the file.

    Returns:
        The folders, and a line for every key that says nothing here.

    Raises:
        ArtifactError: no TOML. UsageError: unknown keys, with the nearest name; values of the wrong type; data sets
            without a folder, or of regularisation pictures.
    """
    where = place(path)
    table = read_toml(user_path(path, "data"), "the data sets")
    _check_keys(table, (GENERAL, DATASETS), where)
    general = _table(table.get(GENERAL, {}), f"{where}, [{GENERAL}]")
    sources: list[DataSource] = []
    told: dict[str, None] = {}
    for number, given in enumerate(_tables(table.get(DATASETS), f"{where}, [[{DATASETS}]]"), 1):
        name = f"{where}, data set {number}"
        subsets = given.get(SUBSETS)
        own = {key: value for key, value in given.items() if key != SUBSETS}
        parts = [{}] if subsets is None else _tables(subsets, f"{name}, {SUBSETS}")
        for index, part in enumerate(parts, 1):
            place_of = name if subsets is None else f"{name}, subset {index}"
            sources.append(_source({**general, **own, **part}, place_of, told))
    return tuple(sources), tuple(told)


def _source(values: Mapping[str, Any], where: str, told: dict[str, None]) -> DataSource:
    _check_keys(values, (*_TAKEN, *_ELSEWHERE, *_WITHOUT, "is_reg"), where)
    if values.get("is_reg"):
        raise UsageError(f"{where}: is_reg is true; regularisation pictures are not trained on here, take the set out")
    for key, value in values.items():
        if key in _ELSEWHERE:
            told[f"{key} of the data sets: {_ELSEWHERE[key]}"] = None
        elif key in _WITHOUT and value not in (False, 0, "", None):
            told[f"{key} of the data sets has no counterpart here and does nothing"] = None
    taken = {key: read(_TAKEN[key], value, f"{where}, {key}") for key, value in values.items() if key in _TAKEN}
    paths = [key for key in _PATHS if key in taken]
    if len(paths) != 1:
        raise UsageError(f"{where} has {' and '.join(paths) or 'no folder'}; allowed: one of {', '.join(_PATHS)}")
    source = {
        "path": taken[paths[0]],
        "num_repeats": taken.get("num_repeats"),
        "caption": taken.get("class_tokens"),
        "caption_extension": taken.get("caption_extension"),
        "caption_dropout": taken.get("caption_dropout_rate"),
        "control": taken.get("control_directory"),
        "aspect_buckets": taken.get("enable_bucket", False),
        "upscale": not (taken.get("enable_bucket", False) and taken.get("bucket_no_upscale", False)),
        "resolution": _resolution(taken, where),
        **(_frames(taken) if paths[0].startswith("video") else {"num_frames": (1,)}),
    }
    return read(DataSource, source, where)


def _resolution(taken: Mapping[str, Any], where: str) -> tuple[str, ...] | None:
    """The size as this project writes it: a side, or height x width."""
    given = taken.get("resolution")
    if given is None:
        return None
    width, height = (given, given) if isinstance(given, int) else given if len(given) == 2 else (0, 0)
    if min(width, height) < 1:
        raise UsageError(explain(f"{where}, resolution", given, "a whole number, or [width, height]"))
    if not taken.get("enable_bucket", False):
        return (f"{height}x{width}",)
    # The side of a square in which the named size finds room.
    return (str(math.isqrt(width * height - 1) + 1),)


def _frames(taken: Mapping[str, Any]) -> dict[str, Any]:
    extraction = taken.get("frame_extraction", "head")
    most = [taken.get("max_frames", _FULL)] if extraction == "full" else taken.get("target_frames", _FRAMES)
    found = {"frame_extraction": extraction, "num_frames": tuple(most)}
    if extraction == "slide":
        found["frame_stride"] = taken.get("frame_stride", _STRIDE)
    if extraction == "uniform":
        found["frame_samples"] = taken.get("frame_sample", 1)
    return found


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{where} is {shown(value)}, allowed: a table of names and values")
    return value


def _tables(value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise UsageError(f"{where} is {shown(value)}, allowed: at least one table")
    return [_table(each, where) for each in value]


def _check_keys(values: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known[:24])}"
            raise UsageError(f"{where}: {shown(key)} is no key of it{hint}")
