"""What a denoising step must cost, what the device can do, and how far apart they are."""
