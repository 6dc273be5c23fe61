"""How each family's denoiser is called in training: ``base`` says what a record holds, one file a family has it."""
