"""The integer work on pixels: `cpu` (numba); every function gives the same bits on every device."""
