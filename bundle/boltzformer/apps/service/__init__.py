"""The HTTP service and its page: one network in memory, scans in, masks out."""
