"""One module per command: builds the parts and says the order of events."""
