"""Agents: policies that learn from a reward alone, and what they learn from."""
