"""log p_expert(x) - log p_base(x) of given samples, without training: rivals of a learned reward.

Four ways to it, each for any two models that can be compared. Scores that are exact make them
agree; learned ones have errors, and where these turn (a rotation, the solenoidal part that is no
gradient) the ways differ, as each one says.
"""
