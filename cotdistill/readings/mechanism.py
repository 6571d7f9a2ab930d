"""What notebook 09 says."""
