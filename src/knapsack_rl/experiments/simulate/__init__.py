"""Training runs of the paper's scale without a language model, and the paper's theory beside them."""
