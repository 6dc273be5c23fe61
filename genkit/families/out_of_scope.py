"""Denoiser classes of Diffusers that no record describes, with the reason: what a patch of them is refused with."""

from __future__ import annotations

#: Class name -> why its attention cannot be patched.
OUT_OF_SCOPE = {
    "PriorTransformer": "it denoises one image embedding: a dozen tokens (text, embedding, time) and no token grid",
    "TransformerTemporalModel": "it is a part of UNets for video; patch the UNet, which knows the frames and rows",
    "DreamLiteTransformer2DModel": "it is a part of DreamLiteUNetModel; patch the UNet, which knows the resolution",
    "MiniMaxMusic3RVQDepthDecoder": "it decodes audio codes one by one with causal attention; nothing is denoised",
    "T5FilmDecoder": "it computes its softmax by itself, where no attention call passes that could be served",
    "RFD4ProteinaTransformer": "it denoises proteins: residues without a grid, with a learned bias for every pair",
    "UNet1DModel": "it computes its softmax by itself, where no attention call passes that could be served",
    "Kandinsky6SRTransformer3DModel": "its attention is block-sparse already, by a mask made from the data",
    "MotionAdapter": "it holds weights of motion modules and has no forward; patch the UNetMotionModel it is in",
}
