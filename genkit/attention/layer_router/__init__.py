"""A trained choice between full and sparse attention by layer, sample and step: settings in ``method``, its networks in
``router``, queries before their positions in ``queries``."""

from genkit.attention.layer_router.method import LayerRouter

__all__ = ["LayerRouter"]
