"""What the page *Speed* measures: `timing` and `growth` measure, the other modules say what."""
