"""JPEG 2000 without a compiler: packets, code-blocks and the 5/3 wavelet in numba, on one core.

    header.py       codestream → its parameters and where the packets lie
    layout.py       parameters → which code-blocks and packets there are (Annex B)
    packets.py      packets → code-blocks' bytes (tier 2, ISO/IEC 15444-1 Annex B)
    tables.py       the arithmetic decoder's states and the contexts (Annexes C and D)
    codeblock.py    a code-block's bytes → wavelet coefficients (tier 1, Annexes C and D)
    passes.py       its three coding passes
    wavelet.py      code-blocks → the image at one resolution (Annex F)

Only what scanners write for lossless greyscale: one component, one tile at the origin, the
reversible wavelet, plain code-blocks. `fastmammo.decoding.numba` says no to the rest beforehand.
"""
