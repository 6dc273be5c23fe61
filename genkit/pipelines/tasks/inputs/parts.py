"""Parts that a run adds to a model: a ControlNet beside the folder, an image prompt adapter (IP-Adapter)."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genkit.errors import ArtifactError, UnsupportedError, UsageError, counted, said
from genkit.models.check import check_safetensors, fingerprint, read_part_config
from genkit.pipelines.tasks.inputs.prior import Prior
from genkit.reading import file_digest, regular, user_path
from genkit.reading.files import place
from genkit.reading.strength import STRENGTH, path_and_strength, strength_text

if TYPE_CHECKING:
    from genkit.pipelines.model import Model
    from genkit.pipelines.settings import GenerateSettings

CONTROLNET = "controlnet"
#: What the tensors of an adapter's file begin with.
_ADAPTER = ("image_proj.", "ip_adapter.")


@dataclass(frozen=True)
class Added:
    """What is added to a model.

    Args:
        controlnet: folder of a ControlNet; None without.
        kind: its class.
        adapter: file of an image prompt adapter; None without.
        scale: of the adapter.
        prior: an adapter that is a pipeline of its own; None without.
    """

    controlnet: Path | None = None
    kind: Any = None
    adapter: Path | None = None
    scale: float = 1.0
    prior: Prior | None = None

    def parts(self, dtype: Any) -> dict[str, Any]:
        """The parts that the pipeline is made with."""
        if self.controlnet is None:
            return {}
        try:
            found = self.kind.from_pretrained(
                str(self.controlnet), dtype=dtype, use_safetensors=True, local_files_only=True
            )
        except (OSError, ValueError, RuntimeError, TypeError) as error:
            raise ArtifactError(f"--controlnet {place(self.controlnet)} cannot be loaded: {said(error)}") from error
        return {CONTROLNET: found}

    def apply(self, pipeline: Any) -> None:
        """Give the adapter to a loaded pipeline."""
        if self.adapter is None:
            return
        own = {"image_encoder_folder": None} if getattr(pipeline, "image_encoder", None) is not None else {}
        try:
            pipeline.load_ip_adapter(str(self.adapter.parent), subfolder="", weight_name=self.adapter.name, **own)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise ArtifactError(
                f"--ip-adapter {place(self.adapter)} does not suit this model: {said(error)}"
            ) from error
        pipeline.set_ip_adapter_scale(self.scale)

    def places(self) -> dict[str, Any]:
        """The settings as they mean the same from any folder."""
        after = f"{STRENGTH}{strength_text(self.scale)}" if self.scale != 1 else ""
        adapter = self.adapter if self.prior is None else self.prior.folder
        return {
            CONTROLNET: None if self.controlnet is None else str(self.controlnet.resolve()),
            "ip_adapter": None if adapter is None else f"{adapter.resolve()}{after}",
        }

    def fingerprints(self) -> dict[str, str]:
        """Digests, for the record."""
        found = {} if self.controlnet is None else {"controlnet_fingerprint": fingerprint(self.controlnet)}
        if self.prior is not None:
            found["ip_adapter_fingerprint"] = fingerprint(self.prior.folder)
        return found if self.adapter is None else found | {"ip_adapter_fingerprint": file_digest(self.adapter)[:16]}


def find_added(settings: GenerateSettings) -> Added:
    """What settings add, by its files.

    Raises:
        UsageError: no ControlNet in the folder. ArtifactError: missing or unreadable files.
    """
    controlnet, kind, adapter, scale = None, None, None, 1.0
    if settings.controlnet is not None:
        controlnet = user_path(settings.controlnet, "--controlnet")
        kind = _controlnet_class(controlnet)
    if settings.ip_adapter is not None:
        adapter, scale = path_and_strength(settings.ip_adapter, "--ip-adapter", low=0)
        if adapter.is_dir():
            return Added(controlnet, kind, None, scale, Prior.find(adapter, scale))
        regular(adapter, "--ip-adapter")
        if adapter.suffix != ".safetensors":
            raise UsageError(f"--ip-adapter {place(adapter)}: only .safetensors files are read")
        names = check_safetensors(adapter, "--ip-adapter")
        if not all(any(name.startswith(start) for name in names) for start in _ADAPTER):
            raise UsageError(
                f"--ip-adapter {place(adapter)} is no image prompt adapter: it has no {_ADAPTER[1]}* tensors"
            )
    return Added(controlnet, kind, adapter, scale)


def _controlnet_class(folder: Path) -> Any:
    import diffusers

    if not (folder / "config.json").is_file():
        raise ArtifactError(f"--controlnet {place(folder)} is no folder of a model: it has no config.json")
    name = str(read_part_config(folder.parent, folder.name).get("_class_name"))
    kind = getattr(diffusers, name, None)
    if "ControlNet" not in name or not hasattr(kind, "from_pretrained"):
        raise UsageError(f"--controlnet {place(folder)} holds a {name}, which is no ControlNet of Diffusers")
    for file in sorted(folder.glob("*.safetensors")):
        check_safetensors(file, "--controlnet")
    return kind


def check_added(added: Added, model: Model) -> None:
    """Refuse what does not go with the model.

    Raises:
        UsageError: a ControlNet of another family. UnsupportedError: an adapter without an encoder of pictures.
    """
    if added.kind is not None and added.controlnet is not None:
        wanted = str(inspect.signature(model.pipeline_class).parameters[CONTROLNET].annotation)
        if added.kind.__name__ not in wanted:
            raise UsageError(f"--controlnet: {model.class_name} takes no {added.kind.__name__}, which the folder holds")
        width = read_part_config(added.controlnet.parent, added.controlnet.name).get("cross_attention_dim")
        own = model.config("unet").get("cross_attention_dim")
        if own is not None and width != own:
            raise UsageError(
                f"--controlnet: it reads text of {counted(width, 'number')} and {model.name} of {own}; it is "
                "for another model"
            )
    if added.prior is not None:
        added.prior.check(model)
    if added.adapter is not None:
        if not hasattr(model.pipeline_class, "load_ip_adapter"):
            raise UsageError(f"--ip-adapter: {model.class_name} takes no image prompt adapters; leave it out")
        beside = (added.adapter.parent / "image_encoder" / "config.json").is_file()
        if "image_encoder" not in model.parts and not beside:
            raise UnsupportedError(
                f"--ip-adapter: neither {model.name} nor the folder of the file has an image_encoder, which reads the "
                "picture; put its folder beside the file"
            )
