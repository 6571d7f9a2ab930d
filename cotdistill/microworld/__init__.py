"""The embedded datasets: questions generated from a knowledge base, with gold rationales."""
