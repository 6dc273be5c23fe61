"""Distil a model into a student: accelerate launch scripts/train_distill.py --config distill.yaml

A LoRA for few steps (--kind steps, tdm) or for sparse attention (--kind features); kind tdm runs in one process. All
options: python scripts/train_distill.py --help. On one device it is the same as genkit train distill.
"""

import sys

from genkit.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "distill", *sys.argv[1:]]))
