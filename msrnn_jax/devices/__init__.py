"""Meshes of devices, their memory, and several processes as one program."""
