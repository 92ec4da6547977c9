"""How decoding speed grows with sparsity, context, batch and predictors: models, measurements, tables, picture."""
