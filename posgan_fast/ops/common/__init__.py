"""Shared by all ops: argument checks, records, memory formats, activations, encodings, autocast, registration."""
