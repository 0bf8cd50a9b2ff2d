"""One quantizer per file."""
