"""The frame step on a CPU in C, for models in float32.

PyTorch takes 20 operations a layer for one position, each of which costs as much as its arithmetic,
and its products of a few rows read the weights at a fraction of the memory's speed. `frame.c`
computes whole frames, `build` compiles it at start-up with the machine's C compiler, `steps` calls
it, and `selection` decides whether it is used. `codec.c` computes the codec's convolutions. Without
a compiler PyTorch computes both.
"""
