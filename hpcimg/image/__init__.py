"""What is in an image file: its format, its processor, its signatures."""
