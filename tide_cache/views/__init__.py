"""From a sample to its masked views; pure."""

from tide_cache.views.compdemo import draw_shown_first, partial_views
from tide_cache.views.masking import active_chunks, draw_view, whole_view

__all__ = ["active_chunks", "draw_shown_first", "draw_view", "partial_views", "whole_view"]
