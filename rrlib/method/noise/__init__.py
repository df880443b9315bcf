"""Levels of noise: paths from data to it, schedules along them, schedulers of diffusers."""
