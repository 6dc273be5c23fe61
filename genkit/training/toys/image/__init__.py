"""Making toy-image and its inpainting variant."""
