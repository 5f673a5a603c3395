"""The pipeline of a request, from admission to settlement. Begin with chat.py."""
