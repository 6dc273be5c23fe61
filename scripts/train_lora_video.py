"""Train a LoRA on clips: accelerate launch scripts/train_lora_video.py --config lora.yaml

For models that make video; one process or several (DDP, or FSDP2 by accelerate's configuration). All options:
python scripts/train_lora_video.py --help. On one device it is the same as genkit train lora.
"""

import sys

from genkit.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "lora", "--kind", "video", *sys.argv[1:]]))
