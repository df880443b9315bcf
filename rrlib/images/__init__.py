"""Text-to-image pipelines: guided samplers, their comparisons, and rewards of images."""
