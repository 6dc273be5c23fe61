"""Names of layers in the authors' own code, one file a family: what LoRA files of ComfyUI and Kohya call them."""
