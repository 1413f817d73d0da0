"""Quality against speed: what every mode and rule gets right, in how many forwards."""
