"""What the chapters about images make and measure."""
