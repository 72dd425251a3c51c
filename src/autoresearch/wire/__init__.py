"""What crosses the trust seam: messages over a socket, and buffers of shared memory. No torch."""
