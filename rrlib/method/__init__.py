"""The method: two models, their differences, the reward that is fitted to them, its guidance."""
