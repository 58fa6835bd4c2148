"""Gaussian diffusion on token embeddings: the continuous variant, beside masked diffusion.

Embeddings of the tokens get Gaussian noise, a bidirectional encoder takes it away, an argmax at the end makes tokens
of what is left. `noise` is the mathematics, `modeling` the model, `trainer` its training, `generation` its samplers,
`likelihood` its bound and `monitors` what shows whether it uses context.
"""
