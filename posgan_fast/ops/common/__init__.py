"""What the ops share: argument checks, memory formats, autocast, activations, encodings, registration."""
