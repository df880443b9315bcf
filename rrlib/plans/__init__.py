"""Plans [B, H, D]: trajectories cut into windows, networks of them, what is given of them."""
