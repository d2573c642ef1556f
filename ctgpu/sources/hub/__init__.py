"""A data set on the Hugging Face Hub, over connections that break."""
