"""Live comparisons with torch, transformers, timm and others: `make parity`."""
