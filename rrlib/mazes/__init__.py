"""Maze2D: PointMaze's world in a batch, its controller, and driving by plans."""
