"""Kinds of pipelines behind one small protocol: texts in, predictions, latents, images out."""
