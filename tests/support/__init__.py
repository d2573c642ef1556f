"""What tests stand on where the real thing is not at hand: a GPU, above all."""
