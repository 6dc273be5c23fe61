"""What a run that follows pictures takes beside the common settings."""

from __future__ import annotations

from dataclasses import dataclass

from genkit.errors import UsageError
from genkit.pipelines.request import NEVER, Settings, option
from genkit.pipelines.text import as_texts


@dataclass(frozen=True)
class ReferenceSettings(Settings):
    """The pictures, and where they apply. Goes with the attention settings."""

    reference: tuple[str, ...] = option(
        (), "Picture to follow, with @0.8 for its strength; goes with --attention reference. Repeatable.",
        group="Attention", parse=as_texts, belongs="attention",
    )  # fmt: skip
    subject: tuple[str, ...] = option(
        (), "Picture of what is to be seen, in the form that the model has for it: one it looks at (--image), an "
        "adapter's (--image-prompt) or reference attention (--reference; --reference-box limits its place). With @0.8 "
        "for its strength. Repeatable.",
        group="Given pictures and clips", parse=as_texts, stored=NEVER,
    )  # fmt: skip
    reference_box: str | None = option(
        None, "Where the pictures of --reference apply (also those of --subject that go that way), as shares of the "
        "canvas: left,top,right,bottom.", group="Attention",
        belongs="attention",
    )  # fmt: skip

    def check(self) -> None:
        super().check()
        if self.reference and self.attention != "reference":
            raise UsageError("--reference needs --attention reference")
        if self.reference_box is not None and not (self.reference or self.subject):
            raise UsageError(
                "--reference-box limits where the pictures of --reference apply; give --reference FILE, or --subject "
                "FILE with a model that takes it that way"
            )
