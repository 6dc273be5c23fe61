"""``genkit.load``: a stock Diffusers pipeline from a shipped name, a folder or a hub id, checked before anything
heavy is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genkit.errors import ArtifactError, UnsupportedError, UsageError, counted, explain, said, shown
from genkit.models.check import check_folder
from genkit.models.registry import Location, locate
from genkit.pipelines.checkpoint import Checkpoint, find_checkpoint
from genkit.pipelines.fits import check_fits
from genkit.pipelines.hub import fetch
from genkit.pipelines.settings import DTYPE_CHOICES, DTYPES, OFFLOADS
from genkit.reading.files import place

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline


def load(
    model: str | Path,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    *,
    offload: str = "none",
    vae_tiling: bool = False,
    vae_slicing: bool = False,
    quantization: Any = None,
    pipeline_class: type | None = None,
    parts: dict[str, Any] | None = None,
    parts_from: str | Path | None = None,
) -> DiffusionPipeline:
    """Load a stock Diffusers pipeline, ready to be called.

    Args:
        model: a shipped name (``"toy-video"``), a local Diffusers folder, a hub id ``owner/name[@revision]``, or a
            whole model in one file (.safetensors), as A1111 and ComfyUI keep them. Only safetensors weights are read,
            and no code from the model's repository is run.
        dtype: torch dtype or its name. Default: float32 on the CPU, bfloat16 on a GPU that supports it, else float16.
        device: where to run. Default: the first GPU, else the CPU.
        offload: ``"model"`` keeps whole parts, ``"sequential"`` single layers in main memory until needed: less GPU
            memory, slower; ``"group"`` single layers too, which are fetched while others compute. Needs a GPU.
        vae_tiling: decode in tiles: less memory, slower, faint seams possible.
        vae_slicing: decode one video of a batch at a time.
        quantization: a ``diffusers.PipelineQuantizationConfig``: parts that are read in fewer bits.
        pipeline_class: a class of Diffusers that takes the same parts, such as ``StableDiffusionImg2ImgPipeline``.
            Default: the one that the folder names.
        parts: further parts by name, such as a loaded ``controlnet``.
        parts_from: for a file: Diffusers folder, shipped name or hub id of a model of its kind, with the configurations
            and the weights that the file does not hold. Default: the model of the hub that Diffusers takes for it.

    Raises:
        UsageError: unknown name, dtype or option.
        ArtifactError: the folder lacks a part, a file is corrupt or belongs to another model, or the hub cannot be
            reached.
        UnsupportedError: this machine has no such device, or the model no such feature.
    """
    location = locate(str(model), files=True)
    where = resolve_device(device)
    kind = resolve_dtype(dtype, where)
    check_offload(offload, where)
    folder, checkpoint = source_of(location, None if parts_from is None else str(parts_from))
    index = check_folder(folder, () if checkpoint is None else (*checkpoint.parts, *checkpoint.left))
    check_fits(folder)
    with without_bars():
        found = pipeline_class or find_class(folder, index["_class_name"])
        if checkpoint is not None:
            parts = checkpoint.load(kind, without=parts or ()) | (parts or {})
        pipeline = _from_folder(folder, found, kind, quantization, parts or {})
    _check_filled(folder, pipeline)
    pipeline.set_progress_bar_config(disable=True)
    if vae_tiling:
        _enable_vae(pipeline, "enable_tiling", "--vae-tiling")
    if vae_slicing:
        _enable_vae(pipeline, "enable_slicing", "--vae-slicing")
    if offload == "model":
        pipeline.enable_model_cpu_offload(device=where)
    elif offload == "group":
        pipeline.enable_group_offload(onload_device=where, offload_type="leaf_level", use_stream=where.type == "cuda")
    elif offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=where)
    else:
        pipeline.to(where)
    return pipeline


@contextmanager
def without_bars() -> Iterator[None]:
    """Diffusers and Transformers draw no progress bars within the block: one for every part and file of a folder that
    is read in a second. Afterwards they do what they did."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    libraries = [library for library in (of_diffusers, of_transformers) if library.is_progress_bar_enabled()]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in libraries:
            library.enable_progress_bar()


def resolve_device(device: torch.device | str | None) -> torch.device:
    """The device to run on; None or ``"auto"`` means the first GPU, else the CPU."""
    import torch

    if device is None or device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        where = torch.device(device)
    except RuntimeError as error:
        raise UsageError(explain("device", str(device), "auto, cpu, cuda, cuda:0, mps, ...")) from error
    if not _present(where.type):
        raise UnsupportedError(f"device {device} is not available here; genkit doctor tells why; use --device cpu")
    if where.type == "cuda" and where.index is not None and where.index >= torch.cuda.device_count():
        raise UnsupportedError(explain("device", str(device), f"cuda:0 to cuda:{torch.cuda.device_count() - 1}"))
    return where


def _present(kind: str) -> bool:
    """Whether PyTorch reaches a device of a type here; a device without memory ("meta") computes nothing."""
    import torch

    if kind == "cpu":
        return True
    if kind == "mps":
        return torch.backends.mps.is_available()
    module: Any = getattr(torch, kind, None)
    return bool(hasattr(module, "is_available") and module.is_available())


_FEWER = " (--quantize fp8 stores them in 8 bits)"


def check_offload(offload: str, device: torch.device, flags: str = "") -> None:
    """Refuse a way of offloading that is none, or that saves nothing on a device.

    Args:
        offload: the way. device: of the run. flags: what stands before a setting's name, for the message.
    """
    if offload not in OFFLOADS:
        raise UsageError(explain("offload", offload, OFFLOADS))
    if offload != "none" and device.type == "cpu":
        raise UnsupportedError(
            f"{flags}offload {offload} keeps weights in main memory until a GPU needs them, and on the CPU they are "
            f"used where they are: it would save nothing; leave it out{_FEWER if flags else ''}"
        )


def resolve_dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    """The dtype to run in; None or ``"auto"`` means float32 on the CPU, bfloat16 on a GPU that has it, else float16."""
    import torch

    if dtype is None or dtype == "auto":
        if device.type == "cpu":
            return torch.float32
        has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bf16 else torch.float16
    if isinstance(dtype, str):
        name = DTYPES.get(dtype, dtype)
        if name not in DTYPE_CHOICES:
            raise UsageError(explain("dtype", dtype, DTYPE_CHOICES))
        dtype = getattr(torch, name)
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise UsageError(explain("dtype", str(dtype), DTYPE_CHOICES))
    if dtype == torch.float16 and device.type == "cpu":
        raise UnsupportedError(
            "float16 needs a GPU: on the CPU use float32 (exact) or bfloat16 (fast where the CPU has it)"
        )
    return dtype


def source_of(location: Location, parts_from: str | None = None) -> tuple[Path, Checkpoint | None]:
    """The folder of a model, and the file that holds weights of it where they are not all in the folder.

    Args:
        location: of the model; one of the hub is downloaded.
        parts_from: see :func:`load`.

    Raises:
        UsageError: ``parts_from`` beside a folder, or a file that is no model. ArtifactError: see :func:`load`.
    """
    if location.kind == "file" and location.path is not None:
        checkpoint = find_checkpoint(location.path, parts_from)
        return checkpoint.folder, checkpoint
    if parts_from is not None:
        raise UsageError(
            f"--parts-from goes with a whole model in one file (.safetensors) as --model; {shown(location.name)} has "
            "all its parts; leave it out"
        )
    return fetch(location), None


def find_class(folder: Path, name: str) -> type:
    """The pipeline class that a folder's model_index.json names; UnsupportedError when this Diffusers has none."""
    import diffusers

    found = getattr(diffusers, name, None)
    if not isinstance(found, type) or not issubclass(found, diffusers.DiffusionPipeline):
        raise UnsupportedError(
            f"{place(folder)} needs the pipeline class {shown(name)}, which diffusers {diffusers.__version__} has not"
        )
    return found


def _from_folder(folder: Path, kind: Any, dtype: torch.dtype, quantization: Any, parts: dict) -> DiffusionPipeline:
    more = parts if quantization is None else {**parts, "quantization_config": quantization}
    try:
        return kind.from_pretrained(str(folder), dtype=dtype, use_safetensors=True, local_files_only=True, **more)
    except Exception as error:  # whatever a class says about files that it was not made for
        raise ArtifactError(f"{place(folder)} cannot be loaded as {kind.__name__}: {said(error)}") from error


def _check_filled(folder: Path, pipeline: DiffusionPipeline) -> None:
    """Refuse tensors that exist in name only.

    Diffusers loads weights that do not belong to a configuration with no more than a warning and leaves the rest empty.
    """
    for part, module in pipeline.components.items():
        if not hasattr(module, "named_parameters"):
            continue
        empty = [name for name, parameter in module.named_parameters() if parameter.is_meta]
        if empty:
            raise ArtifactError(
                f"{folder / part} has no weights for {counted(len(empty), 'tensor')} of its configuration, "
                f"the first is {empty[0]}; weights and config.json do not belong together"
            )


def _enable_vae(pipeline: DiffusionPipeline, call: str, flag: str) -> None:
    vae = getattr(pipeline, "vae", None)
    if vae is None or not hasattr(vae, call):
        raise UnsupportedError(f"{flag}: {type(pipeline).__name__} has no VAE that can do it; leave it out")
    getattr(vae, call)()
