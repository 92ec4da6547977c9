"""Where each neuron lives: byte accounting, the integer program and the plan it writes. Never loads torch."""
