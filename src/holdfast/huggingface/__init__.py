"""What trains with the libraries of Hugging Face."""
