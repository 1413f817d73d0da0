"""`dlm gpu-bench`: how far each stage and step is from its floor, against the project's targets."""
