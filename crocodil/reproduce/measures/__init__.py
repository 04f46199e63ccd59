"""What is measured: each file makes tasks of one kind, each task a part of the texts in one setting."""
