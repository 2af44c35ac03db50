"""Nodes that run steps, the engines inside them, and the router that picks one."""
