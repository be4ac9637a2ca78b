"""What programs that are not ours say of what we write."""
