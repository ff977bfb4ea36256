"""What machines that are not at hand would make of a budget: a calculation, for people who decide how to spend it."""
