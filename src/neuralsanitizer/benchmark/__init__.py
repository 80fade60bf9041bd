"""The benchmark: models with known backdoors and clean ones, scanned, repaired, and scored against the truth."""
