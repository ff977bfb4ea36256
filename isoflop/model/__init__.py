"""The model room. Start at gpt.py; registry.py is the list of what can be swapped."""
