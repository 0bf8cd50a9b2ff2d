"""What training sees of a sample: augmentation."""
