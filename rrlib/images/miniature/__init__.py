"""A text-to-image pipeline of Stable Diffusion's classes, small, of rendered scenes."""
