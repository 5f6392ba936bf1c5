"""Scripts that print ratios measured in one run; `make bench` runs them. They are no tests: nothing fails by time."""
