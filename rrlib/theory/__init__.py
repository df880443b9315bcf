"""Where everything is known in closed form: Gaussian mixtures, their SDEs, vector fields."""
