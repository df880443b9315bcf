"""rrlib: relative rewards of two diffusion models (Nuti, Franzmeyer and Henriques, NeurIPS 2023)."""

__version__ = "0.1.0"
