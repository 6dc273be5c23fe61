"""Train a LoRA on clips with sound: accelerate launch scripts/train_lora_audio_video.py --config lora.yaml

For models that make audio-video; one process or several (DDP, or FSDP2 by accelerate's configuration). All options:
python scripts/train_lora_audio_video.py --help. On one device it is the same as genkit train lora.
"""

import sys

from genkit.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "lora", "--kind", "audio-video", *sys.argv[1:]]))
