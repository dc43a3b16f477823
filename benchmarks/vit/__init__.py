"""Small vision transformers, trained on drawn pictures, rewritten, damaged and scanned."""
