"""From a sample to its masked views; pure."""

from tide_cache.views.masking import ViewPlan, active_chunks, draw_view

__all__ = ["ViewPlan", "active_chunks", "draw_view"]
