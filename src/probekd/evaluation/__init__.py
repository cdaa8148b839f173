"""What is measured at the end: scores, paired differences, and the gate's verdict before it."""
