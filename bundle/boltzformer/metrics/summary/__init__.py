"""What summarises: rows -> means, intervals, comparisons, as plain data for JSON."""
