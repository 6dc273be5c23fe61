"""Train a LoRA on pictures: accelerate launch scripts/train_lora_image.py --config lora.yaml

For models that make image; one process or several (DDP, or FSDP2 by accelerate's configuration). All options:
python scripts/train_lora_image.py --help. On one device it is the same as genkit train lora.
"""

import sys

from genkit.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "lora", "--kind", "image", *sys.argv[1:]]))
