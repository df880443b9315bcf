"""What the method is given, looked at before it begins; what is wrong ends in one sentence."""
