"""Several LoRAs at once, of which a trained router or masks choose token by token: ``mix``, ``gates``, ``files``."""

from genkit.lora.mixture.gates import Gates, Masks, Router, Shares
from genkit.lora.mixture.mix import Expert, Mixture

__all__ = ["Expert", "Gates", "Masks", "Mixture", "Router", "Shares"]
