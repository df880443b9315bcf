"""What two models say without a fitted reward, and what makes steering by one exact.

Log ratios log p_expert(x) - log p_base(x) of given samples are rivals of a learned reward, in four
ways, each for any two models that can be compared. Scores that are exact make them agree; learned
ones have errors, and where these turn (a rotation, the solenoidal part that is no gradient) the
ways differ, as each one says.
"""
