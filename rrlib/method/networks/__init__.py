"""Networks of any origin: how they are called, how rewards are summed and described in files."""
