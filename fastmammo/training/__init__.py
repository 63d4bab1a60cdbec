"""Takes a table and finished images, gives a trained model, its out-of-fold scores, its metrics.

    table ─► folds ─► sampler ─┐
                               ├─► batches ─► model ─► loop ─► scores ─► metrics
    images (convert, DICOM) ───┘   augmented                   oof.csv

Needs the extra `train` (torch, timm, pandas, scikit-learn).
"""
