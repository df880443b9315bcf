"""MuJoCo's robots: their data, policies that make it, rollouts of planners."""
