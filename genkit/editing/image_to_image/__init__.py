"""Image to image: noise the input part of the way and denoise it with another prompt."""

from genkit.editing.image_to_image.pipeline import ImageToImagePipeline

__all__ = ["ImageToImagePipeline"]
