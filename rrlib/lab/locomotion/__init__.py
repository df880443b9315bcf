"""What the chapters about robots make and measure."""
