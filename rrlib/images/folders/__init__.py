"""Folders of pipelines: what is in them is looked at before a library may open it, and after.

The libraries draw a missing weight at random, make an empty tokenizer of a missing one, and open a
pickle where an index names it. Here a folder holds all that its networks need and nothing else, or
it is refused. Each network is first built without memory and held against its weights' headers, so
a file of numbers that are too large costs nothing.
"""
