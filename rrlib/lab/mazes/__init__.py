"""What the chapters about mazes make and measure."""
