"""What every training run shares, whatever is trained."""
