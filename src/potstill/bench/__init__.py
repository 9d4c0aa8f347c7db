"""How fast it is on the hardware at hand."""
