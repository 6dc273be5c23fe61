"""How to train a LoRA: settings, what is planned from them, the adapter, the task, the run."""
