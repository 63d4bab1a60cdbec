"""Lossless JPEG (ITU-T T.81 Annex H, SOF3) of one component, Huffman-coded, in numba.

header: the bytes before the scan → predictor, point transform and the Huffman table.
samples: the scan → samples.
"""
