"""Block selection by the data: settings and calls in ``method``, scores by name in ``selectors``, how many blocks are
kept in ``budget``, published settings in ``presets``."""

from genkit.attention.block_select.method import BlockSelect

__all__ = ["BlockSelect"]
