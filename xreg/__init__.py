"""Particle-by-particle registration of operando X-ray microscopy stacks."""
