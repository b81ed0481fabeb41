"""What shows: summaries on the terminal and on an HTML page."""
