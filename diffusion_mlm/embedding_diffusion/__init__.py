"""Gaussian diffusion on token embeddings: the continuous variant, beside masked diffusion.

Embeddings of the tokens get Gaussian noise, a bidirectional encoder takes it away, an argmax at the end makes tokens
of what is left. `noise` is the mathematics, `noise_warp` a schedule that is learnt, `modeling` the model, `building`
how one begins, `trainer` its training, `generation` its samplers, `clearing` when they take noise from which place,
`likelihood` its bound and `monitors` what shows whether it uses context.
"""
