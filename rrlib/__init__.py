"""rrlib: relative rewards of two diffusion models (Nuti, Franzmeyer, Henriques, NeurIPS 2023)."""

__version__ = "0.1.0"
