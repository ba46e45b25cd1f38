"""The embedded safeguard: its network, its weights, and how they are made and measured."""
