"""Benchmarks of editing: pictures and clips, parts to repaint, styles and subjects, with a known right answer."""
