"""The Triton kernels, each module for the one of its name a folder up, which launches them."""
