"""Values that everybody passes around: errors, records, settings. No I/O, no torch."""
