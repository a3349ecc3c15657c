"""How large a file of weights may become."""

__all__ = ["MOST_OF_A_FILE"]

# what hubs and copying tools are used to; transformers since 5 writes up to 50 GB
MOST_OF_A_FILE = "5GB"
