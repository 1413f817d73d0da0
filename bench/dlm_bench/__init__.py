"""Times the ops and the stages of a denoising step against their roofs and their peers."""
