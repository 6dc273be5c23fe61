"""Image prompt adapters that are pipelines of their own (Flux Redux): before the run they make a prompt of pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genkit.errors import ArtifactError, UsageError, counted, said
from genkit.families.lookup import facts_of
from genkit.models.check import check_folder, read_index, read_part_config
from genkit.pipelines.fits import check_fits
from genkit.pipelines.load import find_class
from genkit.reading.files import place

if TYPE_CHECKING:
    from genkit.pipelines.model import Model

#: Argument of calls that holds the pictures, as adapters inside the denoiser take them.
PICTURES = "ip_adapter_image"


@dataclass(frozen=True)
class Prior:
    """A folder with such a pipeline.

    Args:
        folder: of it.
        kind: its class.
        scale: of the prompt that it makes.
    """

    folder: Path
    kind: Any
    scale: float = 1.0

    @classmethod
    def find(cls, folder: Path, scale: float) -> Prior:
        """The one in a folder, checked without reading weights.

        Raises:
            ArtifactError: a part is missing or broken. UsageError: the folder holds another pipeline.
        """
        index = check_folder(folder)
        name = index["_class_name"]
        facts = facts_of(name)
        if facts is None or name not in facts.priors:
            raise UsageError(
                f"--ip-adapter {place(folder)} holds a {name}, which makes no prompt of pictures; give the "
                ".safetensors file of an adapter, or the folder of a FluxPriorReduxPipeline"
            )
        check_fits(folder)
        return cls(folder, find_class(folder, name), scale)

    def check(self, model: Model) -> None:
        """Refuse a model of another family or width; UsageError."""
        facts = facts_of(model.class_name)
        if facts is None or self.kind.__name__ not in facts.priors or PICTURES not in model.accepted:
            raise UsageError(f"--ip-adapter: {model.class_name} takes no prompt of a {self.kind.__name__}")
        makes = read_part_config(self.folder, "image_embedder").get("txt_in_features")
        reads = model.config("transformer").get("joint_attention_dim")
        if makes != reads:
            raise UsageError(
                f"--ip-adapter {place(self.folder)} makes prompts of {counted(makes, 'number')} a token, and "
                f"{model.name} reads "
                f"{reads}; it is for another model"
            )

    def load(self, pipeline: Any, dtype: Any, device: Any) -> Any:
        """The pipeline on a device, with the text encoders and tokenizers of another one; ArtifactError."""
        wanted = [name for name in read_index(self.folder) if name.startswith(("text_encoder", "tokenizer"))]
        parts = {name: getattr(pipeline, name) for name in wanted}
        try:
            made = self.kind.from_pretrained(
                str(self.folder), dtype=dtype, use_safetensors=True, local_files_only=True, **parts
            )
        except Exception as error:  # whatever a class says about files that it was not made for
            raise ArtifactError(f"--ip-adapter {place(self.folder)} cannot be loaded: {said(error)}") from error
        for name, part in made.components.items():
            if name not in parts and hasattr(part, "parameters"):
                part.to(device)
        return made

    def prompt(self, loaded: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        """Changes to the arguments of a call that holds pictures: the prompt that they and the text make together."""
        pictures = arguments[PICTURES]
        pictures = pictures[0] if isinstance(pictures, list) else pictures
        made = loaded(pictures, prompt=arguments["prompt"], prompt_embeds_scale=self.scale)
        return {
            PICTURES: None, "prompt": None, "prompt_embeds": made.prompt_embeds,
            "pooled_prompt_embeds": made.pooled_prompt_embeds,
        }  # fmt: skip
