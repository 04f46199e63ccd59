"""One runner per figure or table of the paper: the numbers, on held-out texts."""
