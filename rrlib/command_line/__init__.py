"""The command line: `rrlib score`, `rrlib info`, `rrlib extract`."""
